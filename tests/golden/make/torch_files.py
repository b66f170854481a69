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
    ("self_attn.rel_attn_embed", "self_attn.relative_attention_bias"),
    ("self_attn.gru_rel_pos_linear", "self_attn.grep_linear"), ("self_attn.gru_rel_pos_const", "self_attn.grep_a"),
]


def fairseq_name(name, layer_mode):
    name = name.removeprefix("wav2vec2.").removeprefix("hubert.")
    parts = name.split(".")
    if parts[:3] == ["encoder", "pos_conv_embed", "layers"]:  # data2vec: ...layers.J.conv.weight
        return ".".join(["encoder.pos_conv", parts[3], "0", parts[5]])
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
    layer_mode = config.get("feat_extract_norm", "layer") == "layer"
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
        "extractor_mode": {"group": "default", "layer": "layer_norm"}[config.get("feat_extract_norm", "layer")],
        "encoder_layers": config["num_hidden_layers"],
        "encoder_embed_dim": config["hidden_size"],
        "encoder_ffn_embed_dim": config["intermediate_size"],
        "encoder_attention_heads": config["num_attention_heads"],
        "activation_fn": "gelu",
        "layer_norm_first": config.get("do_stable_layer_norm", False),
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


def fairseq_data2vec():
    """Pre-trained, with the teacher that fairseq keeps inside the state dict."""
    state, config, normalize = fairseq_state("data2vec")
    depth, width = config["num_conv_pos_embeddings"], config["hidden_size"]
    state["final_proj.weight"], state["final_proj.bias"] = ramp(width, width), ramp(width)
    state["_ema"] = collections.OrderedDict({"layers.0.fc1.weight": ramp(3, 2)})
    model = model_cfg(config, "data2vec_audio") | {"pos_conv_depth": depth, "conv_pos": depth * config["conv_pos_kernel_size"]}
    return {"args": None, "cfg": {"model": model, "task": {"_name": "audio_pretraining", "normalize": normalize}},
            "model": state}


def unilm(folder):
    """WavLM or UniSpeech-SAT: one flat cfg beside the model."""
    state, config, normalize = fairseq_state(folder)
    cfg = model_cfg(config, "wavlm") | {"normalize": normalize}
    del cfg["_name"]
    if "num_buckets" in config:
        cfg |= {"relative_position_embedding": True, "gru_rel_pos": True, "num_buckets": config["num_buckets"],
                "max_distance": config["max_bucket_distance"]}
    return {"cfg": cfg, "model": state}


CANONICAL = [  # the project's names, as patterns
    (r"conv\.(\d)\.norm\.", r"feature_extractor.conv_layers.\1.2."), (r"conv\.(\d)\.", r"feature_extractor.conv_layers.\1.0."),
    (r"feat_proj\.", "post_extract_proj."), (r"pos_conv\.0\.", "encoder.pos_conv.0."), (r"enc\.norm\.", "encoder.layer_norm."),
    (r"enc\.(\d+)\.attn\.o\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"enc\.(\d+)\.attn\.([qkv])\.", r"encoder.layers.\1.self_attn.\2_proj."),
    (r"enc\.(\d+)\.attn_norm\.", r"encoder.layers.\1.self_attn_layer_norm."),
    (r"enc\.(\d+)\.ffn\.up\.", r"encoder.layers.\1.fc1."), (r"enc\.(\d+)\.ffn\.down\.", r"encoder.layers.\1.fc2."),
    (r"enc\.(\d+)\.ffn_norm\.", r"encoder.layers.\1.final_layer_norm."),
    (r"pretrain\.distill\.0\.", "output_layer.0."), (r"pretrain\.distill\.1\.", "output_layer.2."),
]


def distiller_state():
    import re

    import safetensors.torch

    state = collections.OrderedDict()
    for name, tensor in safetensors.torch.load_file(MODELS / "distilhubert.safetensors").items():
        pattern, theirs = next((p, t) for p, t in CANONICAL if re.match(p, name))
        key = re.sub("^" + pattern, theirs, name)
        tensor = tensor.reshape(1, 1, -1) if name.endswith("weight_g") else tensor
        state[key] = tensor[None, None] if key == "output_layer.2.bias" else tensor
    return state


def s3prl_distilhubert():
    """As s3prl's pre-training saves it, the scheduler a dict."""
    convolutions = "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2"
    distiller = {"extractor_mode": "default", "extractor_conv_feature_layers": convolutions, "extractor_dropout": 0.0,
                 "feature_grad_mult": 0.1, "conv_pos": 16, "conv_pos_groups": 4, "encoder_layers": 2,
                 "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 4,
                 "activation_fn": "gelu", "layer_norm_first": False, "attention_type": "original", "dropout": 0.1,
                 "attention_dropout": 0.1, "activation_dropout": 0.1, "encoder_layerdrop": 0.0, "final_dim": 32,
                 "out_layer_type": "expand-last", "n_tasks": 2, "task_emb_type": "expand-last",
                 "pred_layer_id": [4, 12], "loss_type": "l1", "cosine_loss": 1.0}
    return {"Optimizer": {"state": {0: {"exp_avg": ramp(100)}}}, "Step": 200000,
            "Args": argparse.Namespace(upstream="distiller", seed=1337),
            "Config": {"distiller": distiller, "teacher": {"model": "hubert_base"}, "task": {"sequence_length": 250000}},
            "Distiller": distiller_state(), "Scheduler": {"last_epoch": 1}}


def decoar2():
    """Without configuration; a quantiser beside the encoder. 64 wide, or nothing would tell its heads."""
    def put(name, *shape):
        numbers = (torch.arange(int(np.prod(shape))) * 37 + 11 * len(state)) % 101
        state[name] = numbers.float().reshape(shape).div(64).sub(0.5)

    state, width, ffn = collections.OrderedDict(), 64, 32
    linear = {"self_attn.k_proj": (width, width), "self_attn.v_proj": (width, width), "self_attn.q_proj": (width, width),
              "self_attn.out_proj": (width, width), "self_attn_layer_norm": (width,), "fc1": (ffn, width),
              "fc2": (width, ffn), "final_layer_norm": (width,)}
    put("mask_vector", width)
    modules = {"post_extract_proj": (width, 80), "quantizer.weight_proj": (4, width)}
    modules |= {"encoder.layers.0." + name: shape for name, shape in linear.items()} | {"encoder.layer_norm": (width,)}
    put("encoder.pos_conv.0.bias", width)
    put("encoder.pos_conv.0.weight_g", 1, 1, 4)
    put("encoder.pos_conv.0.weight_v", width, 16, 4)
    for name, shape in modules.items():
        put(name + ".weight", *shape)
        put(name + ".bias", shape[0])
    return {"model": state, "epoch": 3}


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
    weights = next(state[k] for k in ("model_weight", "model", "Distiller") if k in state)
    weights.pop("_ema", None)
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
    save(fairseq_data2vec(), OUT / "fairseq-data2vec.pt")
    save(unilm("wavlm-group"), OUT / "unilm-wavlm-group.pt")
    save(unilm("wavlm-layer"), OUT / "unilm-wavlm-layer.pt", legacy=True)
    save(unilm("unispeechsat-layer"), OUT / "unilm-unispeechsat.pt")
    save(s3prl_distilhubert(), OUT / "s3prl-distilhubert.ckpt")
    save(decoar2(), OUT / "decoar2.pt")
    huggingface_bin(OUT / "hubert-bin")


if __name__ == "__main__":
    main()
