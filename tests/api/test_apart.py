"""Nobody's answer has anything of somebody else's in it: a canary in each request, 16 at a time, in both engines."""

from pathlib import Path

from fieldlm.formats.bundle import Bundle
from tests.support import onnx_models
from tests.support.api_server import api_server
from tests.support.canaries import KINDS, canaries_in, canary, storm
from tests.support.depth import SEED, scaled

REQUESTS = scaled(64, most=10_000)


def test_a_canary_is_found_wherever_it_is() -> None:
    assert len({canary(number) for number in range(10_000)}) == 10_000
    assert list(canaries_in(f"zq{canary(7)} zq000008 {canary(9)}x")) == [canary(7), canary(9)]


def test_no_canary_comes_out_elsewhere_in_llama_cpp(base_bundle: Bundle) -> None:
    with api_server(base_bundle, context=512, parallel=4) as server:
        assert storm(server.url, REQUESTS, SEED) == []
        assert len(server.exchanges) > REQUESTS // 2


TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
# Its context of 512 bytes does not hold what a tool is described by.
WITHOUT_TOOLS = [kind for kind in KINDS if kind != "call"]


def test_no_canary_comes_out_elsewhere_in_onnxruntime(tmp_path: Path) -> None:
    bundle = onnx_models.bundle(tmp_path / "bundle", onnx_models.int4("llama"), template=TEMPLATE)
    with api_server(bundle, context=512, parallel=4) as server:
        assert storm(server.url, REQUESTS, SEED, WITHOUT_TOOLS) == []
        assert len(server.exchanges) > REQUESTS // 2
