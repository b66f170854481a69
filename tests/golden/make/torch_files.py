"""Tiny files as torch.save writes them, for the readers of tests/engine/torch_file.cpp and tests/models/pytorch.cpp.

    python3 -m venv ref && ref/bin/pip install torch==2.15.0 omegaconf numpy
    ref/bin/python tests/golden/make/torch_files.py             # torch-2.zip, torch-2.legacy, the models' .pt
    python3 -m venv old && old/bin/pip install torch==1.13.1 'numpy<2'
    old/bin/python tests/golden/make/torch_files.py             # torch-1.zip, torch-1.legacy
    ref/bin/python tests/golden/make/torch_files.py --check FILE...   # loads files that this project wrote
"""
import argparse
import collections
import json
import sys
from pathlib import Path

import numpy as np
import torch

OUT = Path(__file__).resolve().parent.parent / "torch"
MODELS = Path(__file__).resolve().parent.parent / "models"
MAJOR = torch.__version__.split(".")[0]


def ramp(*shape, dtype=torch.float32):
    return torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape).div(8).sub(2).to(dtype)


def save(value, path, legacy=False):
    path.parent.mkdir(exist_ok=True)
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    print(path.name, path.stat().st_size, "bytes, torch", torch.__version__)


def everything():
    """One of each thing a tensor may be, and values that no reader needs."""
    base = ramp(4, 6)
    tied = ramp(5)
    state = collections.OrderedDict()
    state["dense"] = ramp(2, 3)
    state["transposed"] = base.t()
    state["columns"] = base[:, 1:4]
    state["row"] = base[2]
    state["broadcast"] = ramp(3, 1).expand(3, 4)
    state["tied.a"] = tied
    state["tied.b"] = tied
    state["parameter"] = torch.nn.Parameter(ramp(3))
    state["frozen"] = torch.nn.Parameter(ramp(2, 2), requires_grad=False)
    state["scalar"] = torch.tensor(2.5)
    state["empty"] = torch.zeros(0, 3)
    state["channels_last"] = ramp(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
                  torch.uint8):
        state[str(dtype)[6:]] = ramp(6).abs().mul(8).to(dtype)
    state["bool"] = torch.tensor([True, False, True])
    others = {
        "args": argparse.Namespace(encoder_layers=2, name="tiny", eps=1e-5, flag=True, nothing=None),
        "numbers": [0, -1, 255, 256, 65536, -(2**31), 2**40, -(2**62), 2**100, 0.1, float("inf")],
        "texts": ["", "é", "a" * 300, "new\nline"],
        "tuple": (1, (2, (3, ()))),
        "set": {1},
        "bytes": b"\x00\xff",
        "numpy": np.float64(0.5),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "default": collections.defaultdict(list, {"k": [1]}),
    }
    itself = {"name": "itself"}
    itself["again"] = itself
    others["itself"] = itself
    return {"model": state, **others}


def tensors_of(folder):
    """Tensors of a golden Hugging Face folder, under its names."""
    import safetensors.torch

    tensors = {}
    for path in sorted((MODELS / folder).glob("*.safetensors")):
        tensors.update(safetensors.torch.load_file(path))
    config = json.loads((MODELS / folder / "config.json").read_text())
    preprocessor = json.loads((MODELS / folder / "preprocessor_config.json").read_text())
    return tensors, config, preprocessor["do_normalize"]


RENAMES = [
    ("masked_spec_embed", "mask_emb"), ("feature_projection.layer_norm", "layer_norm"),
    ("feature_projection.projection", "post_extract_proj"), ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"), ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
    (".attention.", ".self_attn."), ("self_attn_layer_norm", "self_attn_layer_norm"),
    (".feed_forward.intermediate_dense", ".fc1"), (".feed_forward.output_dense", ".fc2"),
    ("project_hid", "final_proj"), ("quantizer.codevectors", "quantizer.vars"),
]


def fairseq_name(name, layer_mode):
    name = name.removeprefix("wav2vec2.").removeprefix("hubert.")
    parts = name.split(".")
    if parts[0] == "feature_extractor":  # feature_extractor.conv_layers.C.conv.weight
        kind = {"conv": "0", "layer_norm": "2.1" if layer_mode else "2"}[parts[3]]
        return ".".join(parts[:3] + [kind, parts[4]])
    if parts[:2] == ["encoder", "layers"] and parts[3] == "layer_norm":
        parts[3] = "self_attn_layer_norm"
        name = ".".join(parts)
    for ours, theirs in RENAMES:
        name = name.replace(ours, theirs)
    return name


def fairseq_state(folder, fused=False):
    tensors, config, normalize = tensors_of(folder)
    layer_mode = config["feat_extract_norm"] == "layer"
    state = collections.OrderedDict((fairseq_name(n, layer_mode), t) for n, t in tensors.items())
    if fused:
        g, v = state.pop("encoder.pos_conv.0.weight_g"), state.pop("encoder.pos_conv.0.weight_v")
        state["encoder.pos_conv.0.weight"] = torch._weight_norm(v, g, 2)
    return state, config, normalize


def conv_text(config):
    return "[" + ", ".join(f"({d}, {k}, {s})" for d, k, s in
                           zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"])) + "]"


def model_cfg(config, name):
    """What fairseq's HubertConfig or Wav2Vec2Config would say."""
    return {
        "_name": name,
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[config["feat_extract_norm"]],
        "encoder_layers": config["num_hidden_layers"],
        "encoder_embed_dim": config["hidden_size"],
        "encoder_ffn_embed_dim": config["intermediate_size"],
        "encoder_attention_heads": config["num_attention_heads"],
        "activation_fn": "gelu",
        "layer_norm_first": config["do_stable_layer_norm"],
        "conv_feature_layers": conv_text(config),
        "conv_bias": config["conv_bias"],
        "conv_pos": config["num_conv_pos_embeddings"],
        "conv_pos_groups": config["num_conv_pos_embedding_groups"],
        "dropout": 0, "attention_dropout": 0.1, "activation_dropout": 0.0, "encoder_layerdrop": 0.05,
        "dropout_input": 0.1, "dropout_features": 0.1, "feature_grad_mult": 0.1, "final_dim": 16, "logit_temp": 0.1,
        "mask_prob": 0.65, "mask_length": 10, "latent_vars": config.get("num_codevectors_per_group", 320),
        "latent_groups": config.get("num_codevector_groups", 2), "label_rate": 50.0,
    }


class Dictionary:
    """Pickled as fairseq.data.dictionary.Dictionary, a class that no reader here has."""

    def __init__(self, symbols):
        self.symbols = ["<s>", "<pad>", "</s>", "<unk>"] + symbols
        self.count = [1] * len(self.symbols)
        self.indices = {s: i for i, s in enumerate(self.symbols)}
        self.nspecial = 4


def as_fairseq():
    """Makes Dictionary pickle under fairseq's name."""
    import types

    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        sys.modules[name] = types.ModuleType(name)
    Dictionary.__module__ = "fairseq.data.dictionary"
    sys.modules["fairseq.data.dictionary"].Dictionary = Dictionary


def fairseq_hubert():
    """Pre-trained, as fairseq saves it today: plain dicts, criterion, optimiser."""
    state, config, normalize = fairseq_state("hubert-layer")
    width = config["hidden_size"]
    state["final_proj.weight"], state["final_proj.bias"] = ramp(16, width), ramp(16)
    state["label_embs_concat"] = ramp(14, 16)
    cfg = {"model": model_cfg(config, "hubert"), "common": {"seed": 1},
           "task": {"_name": "hubert_pretraining", "normalize": normalize, "label_rate": 50.0, "sample_rate": 16000}}
    return {"args": None, "cfg": cfg, "model": state, "criterion": None,
            "optimizer_history": [{"criterion_name": "HubertCriterion", "num_updates": 400000}],
            "task_state": {"dictionaries": [Dictionary([str(i) for i in range(10)])]},
            "extra_state": {"epoch": 3}, "last_optimizer_state": {"state": {0: {"exp_avg": ramp(1000)}}}}


def fairseq_wav2vec2_ctc():
    """Fine-tuned, old: Namespaces, numbers as texts, the pre-trained model inside, a fused kernel."""
    state, config, normalize = fairseq_state("wav2vec2-layer", fused=True)
    inner = model_cfg(config, "wav2vec2")
    del inner["_name"]
    inner.update(arch="wav2vec2", normalize=normalize, latent_temp="(2,0.5,0.999995)", dropout="0.0")
    outer = argparse.Namespace(arch="wav2vec_ctc", normalize=normalize, mask_prob=0.5,
                               w2v_args=argparse.Namespace(**inner))
    model = collections.OrderedDict((f"w2v_encoder.w2v_model.{n}", t) for n, t in state.items())
    model["w2v_encoder.proj.weight"], model["w2v_encoder.proj.bias"] = ramp(7, config["hidden_size"]), ramp(7)
    return {"args": outer, "model": model, "optimizer_history": [], "extra_state": {},
            "task_state": {"target_dictionary": Dictionary(["|", "E", "T"])}}


def fairseq_omegaconf():
    """Pre-trained, its cfg an omegaconf object."""
    from omegaconf import OmegaConf

    state, config, normalize = fairseq_state("wav2vec2-group")
    cfg = OmegaConf.create({"model": model_cfg(config, "wav2vec2"),
                            "task": {"_name": "audio_pretraining", "normalize": normalize}})
    return {"args": None, "cfg": cfg, "model": state}


def s3prl_hubert():
    state, config, normalize = fairseq_state("hubert-group")
    state["final_proj.weight"], state["final_proj.bias"] = ramp(16, config["hidden_size"]), ramp(16)
    state["label_embs_concat"] = ramp(6, 16)
    return {"task_cfg": {"normalize": normalize, "label_rate": 50.0, "sample_rate": 16000},
            "model_cfg": model_cfg(config, "hubert"), "model_weight": state,
            "dictionaries_symbols": [["<s>", "<pad>", "</s>", "<unk>", "0", "1"]]}


def huggingface_bin(folder):
    """The golden folder hubert-layer as two pytorch_model shards, the first legacy."""
    tensors, config, _ = tensors_of("hubert-layer")
    folder.mkdir(exist_ok=True)
    names = sorted(tensors)
    half = len(names) // 2
    shards = {"pytorch_model-00001-of-00002.bin": names[:half], "pytorch_model-00002-of-00002.bin": names[half:]}
    for i, (file, part) in enumerate(shards.items()):
        save(collections.OrderedDict((n, tensors[n]) for n in part), folder / file, legacy=i == 0)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())},
             "weight_map": {n: file for file, part in shards.items() for n in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index, indent=1) + "\n")
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text((MODELS / "hubert-layer" / name).read_text())


def check(path):
    safe = MAJOR != "1"  # 1.13's weights_only knows no floating-point numbers
    state = torch.load(path, map_location="cpu", weights_only=safe)
    weights = next(state[k] for k in ("model_weight", "model") if k in state)
    shapes = {n: list(t.shape) for n, t in weights.items()}
    assert all(t.is_contiguous() and bool(torch.isfinite(t).all()) for t in weights.values())
    import zipfile

    assert zipfile.ZipFile(path).testzip() is None
    print(f"{path}: torch {torch.__version__} loads {len(shapes)} tensors with weights_only={safe}, "
          f"{sum(t.numel() for t in weights.values())} values; top level: {', '.join(state)}")


def main():
    if "--check" in sys.argv:
        for path in sys.argv[2:]:
            check(path)
        return
    OUT.mkdir(exist_ok=True)
    save(everything(), OUT / f"torch-{MAJOR}.zip")
    save(everything(), OUT / f"torch-{MAJOR}.legacy", legacy=True)
    if MAJOR == "1":
        return
    as_fairseq()
    save(fairseq_hubert(), OUT / "fairseq-hubert.pt")
    save(fairseq_wav2vec2_ctc(), OUT / "fairseq-wav2vec2-ctc.pt", legacy=True)
    save(fairseq_omegaconf(), OUT / "fairseq-omegaconf.pt")
    save(s3prl_hubert(), OUT / "s3prl-hubert.pt")
    huggingface_bin(OUT / "hubert-bin")


if __name__ == "__main__":
    main()
