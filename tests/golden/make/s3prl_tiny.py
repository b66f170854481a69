"""Small random models of s3prl's own modules (fairseq's and unilm's code among them), saved in the form that s3prl's
upstreams load, and those upstreams' hidden states. For s3prl_downstream.py and s3prl_round_trip.py.

    s3prl 0.4.18 and torchaudio 2.11.0 without their dependencies, and what models.py needs
"""
import contextlib
import io

import torch

torch.version.cuda = '13.0'            # torchaudio refuses to load beside another; its kernels are not used here
import s3prl.upstream.data2vec.data2vec_model as data2vec
import s3prl.upstream.data2vec.expert as data2vec_expert
import s3prl.upstream.decoar2.decoar2 as decoar2
import s3prl.upstream.decoar2.expert as decoar2_expert
import s3prl.upstream.distiller.expert as distiller_expert
import s3prl.upstream.distiller.model as distiller
import s3prl.upstream.hubert.expert as hubert_expert
import s3prl.upstream.hubert.hubert_model as hubert
import s3prl.upstream.unispeech_sat.expert as unispeech_sat_expert
import s3prl.upstream.utils as utils
import s3prl.upstream.wav2vec2.expert as wav2vec2_expert
import s3prl.upstream.wav2vec2.wav2vec2_model as wav2vec2
import s3prl.upstream.wavlm.WavLM as wavlm
import s3prl.upstream.wavlm.expert as wavlm_expert

CONVOLUTIONS = '[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2'
# one head of 64: what a file without configuration must have (DeCoAR 2.0, downstream checkpoints)
COMMON = dict(encoder_layers=2, encoder_embed_dim=64, encoder_ffn_embed_dim=96, encoder_attention_heads=1, conv_pos=16,
              conv_pos_groups=4)
GROUP = dict(extractor_mode='default', layer_norm_first=False, conv_bias=False)
LAYER = dict(extractor_mode='layer_norm', layer_norm_first=True, conv_bias=True)
SYMBOLS = [['<s>', '<pad>', '</s>', '<unk>'] + [str(i) for i in range(6)]]
EXPERTS = {'hubert': hubert_expert, 'wav2vec2': wav2vec2_expert, 'wavlm': wavlm_expert,
           'unispeechsat': unispeech_sat_expert, 'data2vecaudio': data2vec_expert, 'distilhubert': distiller_expert,
           'decoar2': decoar2_expert}


def randomise(model, seed):
    """Norms and biases that matter, relative positions and gates too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'norm' in name and name.endswith('weight') or name.endswith('grep_a'):
                p.uniform_(0.5, 1.5, generator=generator)
            elif p.dim() <= 1 or 'bias' in name:
                p.normal_(0, 0.2, generator=generator)
    return model


def common(**more):
    """Keys that fairseq's configurations share."""
    return COMMON | dict(conv_feature_layers=CONVOLUTIONS, final_dim=16, dropout=0.1) | more


def fairseq_form(model, cfg, task, **more):
    """s3prl's converted form of a fairseq checkpoint."""
    return {'task_cfg': task, 'model_cfg': cfg, 'model_weight': model.state_dict()} | more


def make_hubert(seed, **shape):
    cfg, task = common(**GROUP, label_rate=50.0, untie_final_proj=False) | shape, dict(normalize=False, label_rate=50.0)
    model = hubert.HubertModel(utils.merge_with_parent(hubert.HubertConfig, cfg),
                               utils.merge_with_parent(hubert.HubertPretrainingConfig, task), SYMBOLS)
    return fairseq_form(randomise(model, seed), cfg, task, dictionaries_symbols=SYMBOLS)


def make_wav2vec2(seed):
    cfg, task = common(**LAYER, quantize_targets=True, latent_vars=8, latent_groups=2), dict(normalize=True)
    model = wav2vec2.Wav2Vec2Model(utils.merge_with_parent(wav2vec2.Wav2Vec2Config, cfg))
    return fairseq_form(randomise(model, seed), cfg, task)


def make_data2vec(seed):
    cfg = common(**LAYER | dict(layer_norm_first=False, conv_bias=False), pos_conv_depth=5) | dict(conv_pos=95)
    task = dict(normalize=True)
    model = data2vec.Data2VecAudioModel(utils.merge_with_parent(data2vec.Data2VecAudioConfig, cfg))
    out = fairseq_form(randomise(model, seed), cfg, task)
    out['model_weight']['_ema'] = {}
    return out


def make_unilm(seed, normalize, **more):
    cfg = common(**more, normalize=normalize)
    model = wavlm.WavLM(wavlm.WavLMConfig(cfg))
    return {'cfg': cfg, 'model': randomise(model, seed).state_dict()}


def make_distilhubert(seed, **shape):
    cfg = COMMON | dict(extractor_mode='default', extractor_conv_feature_layers=CONVOLUTIONS, final_dim=64, n_tasks=2,
                        pred_layer_id=[4, 12], task_emb_type='expand-last', out_layer_type='expand-last') | shape
    model = randomise(distiller.DistillerModel(distiller.DistillerConfig(cfg)), seed)
    return {'Config': {'distiller': cfg}, 'Distiller': model.state_dict(), 'Step': 1}


def make_decoar2(seed):
    decoar2.args |= COMMON             # the sizes are constants of the module
    return {'model': randomise(decoar2.Decoar2(), seed).state_dict()}


MAKERS = {'hubert': make_hubert, 'wav2vec2': make_wav2vec2,
          'wavlm': lambda seed: make_unilm(seed, False, **GROUP, relative_position_embedding=True, gru_rel_pos=True,
                                           num_buckets=320, max_distance=800),
          'unispeechsat': lambda seed: make_unilm(seed, True, **LAYER | dict(conv_bias=False)),
          'data2vecaudio': make_data2vec, 'distilhubert': make_distilhubert, 'decoar2': make_decoar2}


def make(family, path, seed, **shape):
    """Writes a model of that family as s3prl's upstream loads it."""
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()): checkpoint = MAKERS[family](seed, **shape)
    torch.save(checkpoint, path)


def upstream(family, path):
    """s3prl's own upstream of such a file; its loading is strict, but DeCoAR's."""
    with contextlib.redirect_stdout(io.StringIO()): return EXPERTS[family].UpstreamExpert(path).eval()


def states(family, path, samples):
    """-> the hidden states [T, C], float64."""
    if family == 'decoar2': check_decoar2(path)
    with torch.no_grad(): hidden = upstream(family, path)([torch.as_tensor(samples, dtype=torch.float32)])
    return [h[0].double() for h in hidden['hidden_states']]


def check_decoar2(path):
    missing, unexpected = decoar2.Decoar2().load_state_dict(torch.load(path, weights_only=True)['model'], strict=False)
    assert not missing and not unexpected, (missing, unexpected)
