"""Settings of sources become the sources they name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from config import sources as settings
from config.values import Secret
from exporter.factory import make_sources

TOKEN = Secret(value="secret")


async def test_each_type_of_source_is_made_with_its_name_and_cluster() -> None:
    configured: list[settings.SourceSettings] = [
        settings.JsonSource(name="a", cluster="one", path=Path("snapshot.json")),
        settings.SimulatedSource(name="b", cluster="two"),
        settings.SlurmSource(name="c", cluster="three"),
        settings.ApoloSource(name="d", cluster="four", token=TOKEN),
        settings.KubernetesSource(name="e", cluster="four", url="https://127.0.0.1:1", token=TOKEN),
    ]
    sources = make_sources(configured, lambda cluster: ())
    assert [(s.name, s.cluster) for s in configured] == [(s.name, s.cluster) for s in sources]
    assert [type(s).__name__ for s in configured] == [type(s).__name__ for s in sources]
    for source in sources:
        await source.close()


def test_only_what_is_configured_is_imported() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from config.sources import JsonSource; from exporter.factory import make_sources\n"
        "make_sources([JsonSource(name='a', path=Path('x'))], lambda cluster: ())\n"
        "print([m for m in sys.modules if m.startswith('exporter.sources.') and ('slurm' in m or 'kube' in m)])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
