"""Private names of other libraries in use: an upgrade that changes one of them fails here."""

import inspect
import re
from pathlib import Path

import pytest
import tiny
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.core_model_loading import LoadStateDictInfo

from outlier_atlas.compat import torch_internals, transformers_internals

LIBRARY = Path(torch_internals.__file__).parents[1]


def llama(dtype=torch.float32):
    config = LlamaConfig(**tiny.SIZES)
    with torch.device("meta"):
        return transformers_internals.from_config(LlamaForCausalLM, config, dtype)


def test_views_share_the_storage_and_copies_do_not_without_memory_either():
    tensor = torch.empty(4, 4, device="meta")
    known = torch_internals.storage_id(tensor)
    assert torch_internals.storage_id(tensor.T[1:]) == known
    assert torch_internals.storage_id(tensor.clone()) != known


def test_buffers_of_a_module_itself_can_be_replaced():
    module = nn.Sequential(nn.BatchNorm1d(2))
    module.register_buffer("none", None)
    assert torch_internals.own_buffers(module) == {"none": None}
    torch_internals.own_buffers(module)["none"] = torch.ones(1)
    assert module.none == 1


def test_only_the_tensors_of_a_module_itself_are_replaced():
    module = nn.Sequential(nn.Linear(2, 2))
    module.weight = nn.Parameter(torch.ones(2))
    torch_internals.apply_to_own_tensors(module, lambda tensor: tensor.to("meta"))
    assert module.weight.device.type == "meta"
    assert module[0].weight.device.type == "cpu"


def test_hidden_children_come_back_and_names_stay():
    blocks = nn.ModuleList([nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 1)])
    wanted = lambda child: isinstance(child, nn.Linear)  # noqa: E731
    with pytest.raises(KeyError), torch_internals.only_children(blocks, wanted):
        assert [name for name, _ in blocks.named_children()] == ["0", "2"]
        raise KeyError
    assert len(blocks) == 3


@pytest.mark.parametrize(
    ("operator", "name", "in_place"),
    [(torch.ops.aten.add_.Tensor, "add_", True), (torch.ops.aten.mT.default, "mT", False)],
)
def test_operators_say_their_name_and_whether_they_write(operator, name, in_place):
    assert torch_internals.operator_name(operator) == name
    assert torch_internals.is_in_place(operator) == in_place


def test_a_model_is_built_in_a_dtype_without_a_checkpoint():
    model = llama(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.dtype == torch.bfloat16
    assert transformers_internals.names_in_float32(model) == {}


def test_transformers_loads_files_through_the_method_that_is_overridden(tmp_path, monkeypatch):
    """The first three arguments are the model, its loaded weights, and the files."""
    tiny.llama(tmp_path)
    calls = []
    whole = inspect.getattr_static(PreTrainedModel, transformers_internals.LOAD)
    assert isinstance(whole, staticmethod)

    def load(model, state_dict, files, *settings):
        calls.append((state_dict, [Path(file).name for file in files]))
        return transformers_internals.load_files(
            PreTrainedModel, model, state_dict, files, *settings
        )

    subclass = type("Llama", (LlamaForCausalLM,), {transformers_internals.LOAD: staticmethod(load)})
    subclass.from_pretrained(tmp_path)
    assert calls == [(None, ["model.safetensors"])]


def test_ignored_keys_are_no_unexpected_ones(monkeypatch):
    for name in (transformers_internals.IGNORED_KEYS, transformers_internals.TIED_KEYS):
        assert hasattr(LlamaForCausalLM, name)
    monkeypatch.setattr(LlamaForCausalLM, transformers_internals.IGNORED_KEYS, ["old"])
    info = LoadStateDictInfo(
        missing_keys=set(), unexpected_keys={"old.weight", "new.weight"}, mismatched_keys=set(),
        error_msgs=[], conversion_errors={}, skipped_pp_keys=set(),
    )  # fmt: skip
    transformers_internals.leave_out_ignored(llama(), info)
    assert info.unexpected_keys == {"new.weight"}


def test_private_names_of_torch_and_transformers_are_used_in_one_place():
    private = re.compile(
        r"torch[\w.]*\._[a-z]\w*|(?<!self)\._(cdata|buffers|modules|apply|schema|from_config|get_dtype_plan|"
        r"load_pretrained_model|adjust_missing\w*|tied_weights_keys|keys_to_ignore\w*)\b"
    )
    for path in LIBRARY.rglob("*.py"):
        if path.parent.name != "compat":
            assert not private.search(path.read_text()), path
