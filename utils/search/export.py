"""An index as a Parquet file, for databases of vectors that serve several machines."""

from pathlib import Path

from utils.search.query import find_index
from utils.search.store import Index
from utils.system.errors import SearchError
from utils.system.files import counted, replacing
from utils.system.settings import Config


def export_parquet(index: Index, path: Path) -> int:
    """Write the full paths and the embeddings of an index, as columns `path` (text) and `embedding` (D numbers,
    float32), which LanceDB, Qdrant and Milvus read.

    Returns:
        How many images were written.

    Raises:
        SearchError: the package that writes Parquet is missing.
        UserError: the file cannot be written.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise SearchError("search export: pyarrow is missing; run: pip install pyarrow") from None
    files, embeddings = index.contents()
    column = pyarrow.FixedSizeListArray.from_arrays(embeddings.ravel(), index.dim)
    table = pyarrow.table({"path": [str(index.folder / file) for file in files], "embedding": column})
    with replacing(path) as partial:
        parquet.write_table(table, partial)
    return len(files)


def export_and_report(config: Config, path: Path, folder: Path | None = None) -> None:
    """Export as the command line does, and print what was done."""
    place, model, _ = find_index(config, folder)
    with Index(place, model) as index:
        print(f"{path}: {counted(export_parquet(index, path), 'image')} of {index.folder} with path and embedding")
