"""What an engine refuses before any weight is read."""

import pytest

from jaxs1.config import UserError
from jaxs1.decoding import opening
from jaxs1.decoding.opening import EngineConfig, open_engine, resolve_impl
from tests.decoding.engines import LIMITS, write_model


@pytest.mark.parametrize(
    ("impl", "message"),
    [
        ("triton", "impl=triton: cannot run here .*Triton kernels run on NVIDIA GPUs"),
        ("pallas", "impl=pallas: cannot run here .*runs on TPUs"),
    ],
)
def test_an_implementation_for_other_devices(impl, message, tmp_path, monkeypatch):
    write_model(tmp_path)
    monkeypatch.setattr(opening, "load_params", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UserError, match=message) as error:
        open_engine(EngineConfig(str(tmp_path), impl=impl, limits=LIMITS))
    assert str(error.value).endswith("give --impl xla")


def test_auto_is_xla_until_a_gpu_check_is_committed():
    assert resolve_impl("auto") == "xla"
