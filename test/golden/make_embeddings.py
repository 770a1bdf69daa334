#!/usr/bin/env python3
"""Writes embeddings.json: what transformers computes as embeddings with the golden checkpoint qwen3.

    python test/golden/make_embeddings.py

Needs torch and transformers 5.17 (CPU). An embedding is the hidden state of a prompt's last token behind the last
norm, in float32, as sentence-transformers pools it for Qwen3-Embedding: `states` as it is, `normalized` divided by
its Euclidean norm, `normalized32` its first 32 elements divided by theirs (Matryoshka).
"""

import json
from pathlib import Path

import torch
from transformers import AutoModel

HERE = Path(__file__).resolve().parent


def main() -> None:
    model = AutoModel.from_pretrained(HERE / 'checkpoints' / 'qwen3', dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for length in (1, 2, 17, 100, 200):
        token_ids = torch.randint(0, 306, (length,), generator=generator)
        with torch.no_grad():
            state = model(token_ids[None]).last_hidden_state[0, -1]
        prompts.append(
            {
                'promptTokenIds': token_ids.tolist(),
                'states': state.tolist(),
                'normalized': torch.nn.functional.normalize(state, dim=0).tolist(),
                'normalized32': torch.nn.functional.normalize(state[:32], dim=0).tolist(),
            }
        )
    rounded = json.loads(json.dumps(prompts), parse_float=lambda text: round(float(text), 7))
    (HERE / 'embeddings.json').write_text(json.dumps(rounded) + '\n')


if __name__ == '__main__':
    main()
