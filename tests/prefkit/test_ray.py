"""The same tasks on a Ray cluster of two nodes, one of which dies."""

import threading
import time

import pytest
from dumps import many, tree_digest, write_dump

from prefkit import convert_dataset, plan
from prefkit.errors import UserError

pytestmark = pytest.mark.slow
ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'prefkit[ray]'")


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    monkeypatch.setattr(plan, "SLICE_BYTES", 20_000)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def test_a_node_that_dies_costs_nothing(cluster, tmp_path):
    folder = write_dump(tmp_path / "in", many(600))
    convert_dataset(folder, tmp_path / "local", workers=1)
    doomed = cluster.add_node(num_cpus=1, include_dashboard=False)
    killed = []

    def kill():
        while not list((tmp_path / "ray/.work").glob("pair-*.json")):
            time.sleep(0.01)
        cluster.remove_node(doomed, allow_graceful=False)
        killed.append(not (tmp_path / "ray/manifest.json").exists())

    killer = threading.Thread(target=kill)
    killer.start()
    convert_dataset(folder, tmp_path / "ray", engine="ray", ray_address=cluster.address)
    killer.join()
    assert killed == [True]
    assert tree_digest(tmp_path / "ray") == tree_digest(tmp_path / "local")


def test_mistakes_cross_the_cluster_as_what_they_are(cluster, tmp_path):
    old, new = many(3), many(3)
    new[0] |= {"CreationDate": "2001-01-01T00:00:00"}
    folders = [write_dump(tmp_path / "old", old), write_dump(tmp_path / "new", new)]
    with pytest.raises(UserError, match="two different posts 1"):
        convert_dataset(folders, tmp_path / "out", options={"site": "beer"}, engine="ray", ray_address=cluster.address)


def test_an_address_where_nobody_is(tmp_path):
    with pytest.raises(UserError, match="no Ray cluster there"):
        convert_dataset(write_dump(tmp_path / "in", many(3)), tmp_path / "out", engine="ray", ray_address="127.0.0.1:1")
