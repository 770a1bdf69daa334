#!/usr/bin/env python3
"""Writes random weights to folders with a config.json, and computes reference logits with Hugging Face transformers.

    python3 test/gpu/transformers_reference.py cuda|cpu FOLDER...

Needs torch, transformers 5 and safetensors. A folder holds config.json, as published, and sequences.json, a list of
{ tokenIds, positions }. The script adds

    model.safetensors           weights in bfloat16: matrices normal(0, initializer_range), norms normal(1, 0.3)
    logits.float32.bin          float32 [number of all positions, vocab_size], sequences concatenated:
    logits.bfloat16.bin         transformers' logits in that type

Every sequence is computed alone in one forward pass. In float32 attention is 'eager', plain products and a softmax, and
TF32 is disabled: this is the reference. In bfloat16 attention is 'sdpa', transformers' default.
"""

import json
import os
import sys
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'  # the folder is complete

try:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging
except ImportError as error:
    sys.exit(f'{sys.executable}: {error}')

SEED = 20240925
ATTENTION = {torch.float32: 'eager', torch.bfloat16: 'sdpa'}


def write_weights(folder: Path, device: str) -> None:
    """Random weights with transformers' names; without a tied head, as in published checkpoints."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device('meta'):
        model = AutoModelForCausalLM.from_config(config)
    tensors = {name: parameter.shape for name, parameter in model.named_parameters()}
    if config.tie_word_embeddings:
        tensors.pop('lm_head.weight', None)
    generator = torch.Generator(device).manual_seed(SEED)

    def draw(shape: torch.Size) -> torch.Tensor:
        mean, std = (1.0, 0.3) if len(shape) == 1 else (0.0, config.initializer_range)
        values = torch.empty(shape, dtype=torch.bfloat16, device=device)
        return values.normal_(mean, std, generator=generator).cpu()

    save_file(
        {name: draw(shape) for name, shape in tensors.items()}, folder / 'model.safetensors', metadata={'format': 'pt'}
    )


@torch.inference_mode()
def write_logits(folder: Path, device: str, dtype: torch.dtype) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=ATTENTION[dtype])
    model.to(device)
    # Also in float32 for a bfloat16 model, so that its error is the one that users see.
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    with open(folder / f'logits.{str(dtype).removeprefix("torch.")}.bin', 'wb') as file:
        for sequence in json.loads((folder / 'sequences.json').read_text()):
            token_ids = torch.tensor([sequence['tokenIds']], device=device)
            positions = torch.tensor(sequence['positions'], device=device)
            logits = model(token_ids, logits_to_keep=positions, use_cache=False).logits[0]
            assert logits.dtype == dtype
            file.write(logits.float().cpu().numpy().tobytes())


def main(device: str, *folders: str) -> None:
    if device == 'cuda' and not torch.cuda.is_available():
        sys.exit(f'{sys.executable}: torch {torch.__version__} finds no GPU')
    torch.backends.cuda.matmul.allow_tf32 = False
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for folder in map(Path, folders):
        write_weights(folder, device)
        for dtype in ATTENTION:
            write_logits(folder, device, dtype)


if __name__ == '__main__':
    main(*sys.argv[1:])
