"""The review service: the revision queue, the labels and a web page over HTTP."""
