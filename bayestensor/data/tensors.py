"""Public tensors for completion, read from a local folder: arrays with NaN where nothing was observed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bayestensor.data.base import DataError
from bayestensor.data.files import data_folder


def load_tensor(name: str, data_dir: str | Path | None = None) -> np.ndarray:
    """One of TENSORS, float64, NaN where unknown.

    Args:
        name: 'amino' (sample x emission x excitation), 'kinetic' (measurement x emission x excitation x time),
            'serology' (sample x antigen x receptor), 'birmingham' (car park x day x half hour; 0 is missing), 'nyc'
            (origin x destination x hour), 'jasper' (band x pixel x pixel), 'mri' (three axes and a repetition),
            'kinship' (person x person x term; 0 or 1), and 'airplane', 'baboon', 'barbara', 'facade', 'peppers'
            (row x column x colour).
        data_dir: the folder that holds `tensors/`; `data_folder` when None.

    Raises:
        DataError: no such tensor, or no such file.
    """
    if name not in TENSORS:
        raise DataError(f"no tensor {name!r}; there are {', '.join(sorted(TENSORS))}")
    relative, reader = TENSORS[name]
    path = data_folder(data_dir) / "tensors" / relative
    if not path.is_file():
        raise DataError(f"{path}: no such file; set BAYESTENSOR_DATA to the folder that holds tensors/")
    return reader(path).astype(np.float64)


def _mat(key: str) -> Callable[[Path], np.ndarray]:
    def read(path: Path) -> np.ndarray:
        from scipy.io import loadmat

        return np.asarray(loadmat(path)[key])

    return read


def _image(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image)


def _kinetic(path: Path) -> np.ndarray:
    missing = np.load(path.with_name("Kinetic_missing.npy"), allow_pickle=False)
    return np.where(missing, np.nan, np.load(path, allow_pickle=False))


def _birmingham(path: Path) -> np.ndarray:
    counts = _mat("tensor")(path).astype(np.float64)
    return np.where(counts == 0, np.nan, counts)


def _jasper(path: Path) -> np.ndarray:
    bands = _mat("Y")(path)
    return bands.reshape(len(bands), 100, 100, order="F")


def _nifti(path: Path) -> np.ndarray:
    """The voxels of a NIfTI-1 file of int16, as stored."""
    import gzip

    content = gzip.decompress(path.read_bytes())
    order = "<" if np.frombuffer(content, "<i4", 1)[0] == 348 else ">"
    dims = np.frombuffer(content, order + "i2", 8, offset=40)
    kind = int(np.frombuffer(content, order + "i2", 1, offset=70)[0])
    if kind != 4:
        raise DataError(f"{path}: NIfTI data of type {kind}; 4 (int16) is read")
    start, shape = int(np.frombuffer(content, order + "f4", 1, offset=108)[0]), tuple(dims[1 : 1 + dims[0]].tolist())
    return np.frombuffer(content, order + "i2", int(np.prod(shape)), offset=start).reshape(shape, order="F")


TENSORS: dict[str, tuple[str, Callable[[Path], np.ndarray]]] = {
    "amino": ("amino-acids/claus.mat", lambda path: _mat("X")(path).reshape(5, 201, 61)),
    "kinetic": ("kinetic-fluorescence/Kinetic.npy", _kinetic),
    "serology": ("serology/COVID19_data.npy", lambda path: np.load(path, allow_pickle=False)),
    "birmingham": ("traffic/Birmingham-data-set/tensor.mat", _birmingham),
    "nyc": ("traffic/NYC-data-set/tensor.mat", _mat("tensor")),
    "jasper": ("hyperspectral/jasperRidge2_R198.mat", _jasper),
    "mri": ("mri/example4d.nii.gz", _nifti),
    "kinship": ("kinship/alyawarradata.mat", _mat("Rs")),
    **{n: (f"color-images/{n}.bmp", _image) for n in ("airplane", "baboon", "barbara", "facade", "peppers")},
}


def load_ratings(data_dir: str | Path | None = None, spans: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """MovieLens small: (coordinates (n, 3) of user, film and one of `spans` of time with equally many ratings, stars).

    Args:
        data_dir: the folder that holds `recsys/`; `data_folder` when None.
        spans: of time.

    Raises:
        DataError: no such file.
    """
    import pandas

    path = data_folder(data_dir) / "recsys" / "ml-latest-small" / "ratings.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such file; set BAYESTENSOR_DATA to the folder that holds recsys/")
    table = pandas.read_csv(path)
    when = np.searchsorted(np.quantile(table["timestamp"], np.linspace(0, 1, spans + 1)[1:-1]), table["timestamp"])
    codes = [np.unique(table[name], return_inverse=True)[1] for name in ("userId", "movieId")]
    return np.stack([*codes, when], axis=1), table["rating"].to_numpy()
