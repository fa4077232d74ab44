"""The MONAI Label protocol, for 3D Slicer and other stock clients."""
