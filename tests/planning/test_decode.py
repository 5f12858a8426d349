"""The decode loop compiled ahead of time: no large copies, little memory, one CUDA graph."""

import dataclasses
import importlib.util
import json

import pytest

from jaxs1.config import UserError
from jaxs1.plan import main
from jaxs1.planning import topology
from jaxs1.planning.hlo import count_launches, large_copies
from jaxs1.planning.targets import Target
from kernels.shapes import MODELS, step_work
from tests.planning.cases import needs

LAYERS = ["--layers", "2"]

TEXT = """HloModule jit_chunk

%body (p: (bf16[4,513,64,128])) -> (bf16[4,513,64,128]) {
  %copy.1 = bf16[4,513,64,128]{3,2,1,0} copy(%p), metadata={op_name="x"}
  %copy-start.1 = (bf16[5120,128]{1,0:T(8,128)S(1)}, bf16[5120,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %copy-start.2 = (f32[5120,128]{1,0:T(8,128)}, f32[5120,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%w)
  %copy.2 = s32[8,16]{1,0} copy(%q)
  ROOT %pad.1 = bf16[4,513,64,128]{3,2,1,0} pad(%p, %zero), padding=0_0x0_0x0_0x0_64
}

ENTRY %main (x: pred[8,152064]) -> pred[8,152064] {
  ROOT %copy.3 = pred[8,152064]{1,0} copy(%x)
}
"""  # noqa: E501


def test_large_copies_by_hand():
    """1 MiB and more; a TPU's prefetch does not count, and the ENTRY runs once."""
    pages = "bf16[4,513,64,128]"
    assert large_copies(TEXT) == ([pages, "f32[5120,128]", pages], ["pred[8,152064]"])


def test_launches_by_hand():
    graph = "000: kCommandBuffer [source]\n    001: kCopy [x]\n    002: kWhile [y]\nbody:\n"
    assert count_launches(graph) == {"kCommandBuffer": 1}
    none = "000: kCommandBuffer [x]\n001: kWhile [x]\n    002: kCommandBuffer [x]\n003: kCopy [x]\n"
    assert count_launches(none) == {"kCommandBuffer": 1, "kWhile": 1, "kCopy": 1}


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [1, 8, 32])
def test_triton_on_an_h200(sequences, capsys, tmp_path):
    """No copy of weights or pages, and the loop is one CUDA graph."""
    needs("gpu")
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    found = planned(tmp_path, "--target", "h200:1x1", "--impl", "triton", "--sequences", sequences)
    assert found["copies"] == []
    assert set(found["copies_once"]) <= {f"u8[{sequences},152064]"}  # tokens that were seen
    assert found["in_place"] == found["cache"]
    assert found["temporaries"] < 64 << 20
    assert found["launches"] == {"kCommandBuffer": 1}
    assert "the loop is one CUDA graph" in capsys.readouterr().out


@pytest.mark.slow
def test_triton_with_int8_weights_on_an_h100(tmp_path):
    """Half the bytes, and XLA neither copies nor converts a weight."""
    needs("gpu")
    pytest.importorskip("triton", reason="Triton has wheels for Linux only")
    found = planned(
        tmp_path, "--target", "h100:1x1", "--impl", "triton", "--weights", "int8", "--sequences", 1
    )
    assert found["copies"] == [] and found["copies_once"] == []
    assert found["launches"] == {"kCommandBuffer": 1}
    assert found["temporaries"] < 64 << 20
    shape = dataclasses.replace(MODELS["qwen2.5-32b"], layers=2, weight_bytes=1)
    embedding = 2 * shape.vocabulary * shape.width  # stays in bfloat16
    expected = step_work(shape, batch=1, context=1).weights + embedding
    assert found["weights"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
def test_xla_on_an_h200_is_no_graph(capsys, tmp_path):
    """XLA's loop is not one graph: the products of its attention are in none."""
    needs("gpu")
    found = planned(tmp_path, "--target", "h200:1x1", "--impl", "xla")
    assert found["copies"] == [] and "kWhile" in found["launches"]
    assert "the loop is NOT one CUDA graph" in capsys.readouterr().out


@pytest.mark.slow
def test_experts_on_an_h100(tmp_path):
    """A transposed copy of the weights of a layer's experts would be 384 MiB of temporaries."""
    needs("gpu")
    found = planned(tmp_path, "--target", "h100:1x1", "--architecture", "qwen3-30b-a3b")
    assert found["temporaries"] < 64 * 2**20


def test_devices_that_copies_do_not_divide():
    with pytest.raises(UserError, match="tensor=3: must divide the 8 devices of cpu:8"):
        main(["--decode", "--target", "cpu:8", "--tensor", "3"])


@pytest.mark.slow
@pytest.mark.parametrize("target", ["v5e:2x2", "v6e:2x2"])
def test_pallas_on_tpu(target, tmp_path):
    """No copy of pages: a scatter would change their layout in every step."""
    needs("tpu")
    found = planned(tmp_path, "--target", target, "--impl", "pallas")
    assert found["copies"] == [] and found["launches"] == {}
    assert found["in_place"] == found["cache"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "cpu:1", "--impl", "triton"],
         r"impl=triton: cannot run here \(device=cpu: Triton kernels run on NVIDIA GPUs\)"),
        (["--target", "cpu:1", "--impl", "pallas"], r"impl=pallas: .*runs on TPUs"),
    ],
)  # fmt: skip
def test_mistakes(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        main(["--decode", *arguments, *LAYERS])
    assert str(error.value).endswith("give --impl xla") and "\n" not in str(error.value)


def test_too_many_sequences_for_the_kernels():
    needs("gpu")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    with pytest.raises(UserError, match=r"impl=triton: .*batch=65: the Triton kernels take 1"):
        main(["--decode", "--target", "h200:1x1", "--impl", "triton", "--sequences", "65", *LAYERS])


def test_missing_compiler_is_one_line(monkeypatch):
    """The line names the pip command."""
    monkeypatch.setattr(topology, "_PLUGINS", {"gpu": "no_such_plugin"})
    with pytest.raises(UserError, match=r"pip install 'jaxs1\[plan\]'") as error:
        main(["--decode", "--config", "s1_32b", "--target", "h100:1x1"])
    assert "\n" not in str(error.value)


def test_loading_peak_decides_whether_it_fits(monkeypatch, capsys, tmp_path):
    """Weights, one layer and the embedding; by hand for two layers of the 32B with a tiny cache."""
    found = planned(tmp_path, "--target", "cpu:1", "--sequences", 1, "--context", 64)
    layer = 5120 * (2 * 5120 + 2 * 1024 + 3 * 27648 + 2) + 5120 + 2 * 1024
    embedding = 152064 * 5120
    assert found["weights"] == 4 * (2 * layer + 2 * embedding + 5120)
    assert found["loading_peak"] == found["weights"] + 4 * (layer + embedding)
    decoding = found["weights"] + found["cache"] + found["temporaries"]
    assert decoding < found["loading_peak"]
    assert f"fits        yes: {found['loading_peak'] / 1e9:.1f} of" in capsys.readouterr().out
    limit = (decoding + found["loading_peak"]) / 2
    monkeypatch.setattr(Target, "available", property(lambda self: limit))
    words = ["--decode", "--config", "s1_32b", *LAYERS, "--target", "cpu:1"]
    assert main([*words, "--sequences", "1", "--context", "64"]) == 1
    assert "fits        NO" in capsys.readouterr().out


@pytest.mark.parametrize("model", [
    ["--config", "s1_7b"], ["--config=s1_7b"], ["--architecture", "qwen2.5-7b"],
    ["--config", "s1_32b", "--architecture", "qwen2.5-7b"],
])  # fmt: skip
def test_shapes_by_name_from_any_folder(model, monkeypatch, tmp_path, capsys):
    """A recipe's model, or shapes by name; nothing is read from the current folder."""
    monkeypatch.chdir(tmp_path)
    small = ["--layers", "1", "--sequences", "1", "--context", "64", "--target", "cpu:1"]
    assert main(["--decode", *model, *small]) == 0
    page = capsys.readouterr().out
    assert "qwen2.5-7b.json" in page and "fits        yes" in page


def test_help_lists_both(capsys):
    """--decode is an option of the plan and has a help of its own."""
    for words, expected in ((["--help"], "--decode"), (["--decode", "--help"], "--sequences")):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out


def planned(folder, *arguments):
    """Figures of a plan at two layers of the 32B."""
    output = folder / "plan.json"
    words = ["--decode", *arguments, "--config", "s1_32b", "--output", output, *LAYERS]
    assert main(list(map(str, words))) == 0
    return json.loads(output.read_text())
