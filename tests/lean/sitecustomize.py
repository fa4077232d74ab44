"""Read by Python at its start: what an image leaves out is not there (see `lean_image`)."""

import os
import sys


class _WithoutTests:
    """Folders of tests are removed from the images."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if "tests" in name.split("."):
            raise ModuleNotFoundError(f"no module {name} in the image", name=name)


sys.modules.update(dict.fromkeys(os.environ["ATLASLOOP_LEFT_OUT"].split(",")))  # type: ignore[arg-type]
sys.meta_path.insert(0, _WithoutTests)  # type: ignore[arg-type]
