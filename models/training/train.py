"""Trains the stories model: corpus -> tokenizer -> tokens -> model -> Hugging Face folder.

    python train.py --out ../stories

takes about three minutes on one data-centre GPU. `--documents 2000 --steps 20 --out /tmp/try` shows
on a CPU that everything works. It writes the folder and, beside train.py or where `--log` says, the
loss of every evaluation.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import re
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from conversations import END_OF_TURN, ROLE_MARKER, render_chat
from corpus import document

TRAIN_SEED, VALIDATION_SEED = 1, 2
VOCAB_SIZE = 2048
MAX_POSITIONS = 1024
# Rows of a batch are this long in turn. Short rows teach how a text begins at position 0, long ones
# that it may begin anywhere, and every position up to the model's limit.
ROW_LENGTHS = (256, 512, 1024)

BEGIN_OF_TEXT, END_OF_TEXT = '<|begin_of_text|>', '<|end_of_text|>'
SPECIAL_TOKENS = [BEGIN_OF_TEXT, END_OF_TEXT, END_OF_TURN, *ROLE_MARKER.values()]

CHAT_TEMPLATE = (
    '{{ bos_token }}'
    '{% for message in messages %}'
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('Unknown role: ' + message['role']) }}"
    '{% endif %}'
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) + '<|end_of_turn|>' }}"
    '{% endfor %}'
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


# --- Tokenizer -----------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE: every byte is a token, so any text round-trips; merges come from `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    marker = re.compile('|'.join(map(re.escape, SPECIAL_TOKENS)))
    tokenizer.train_from_iterator((part for text in texts for part in marker.split(text)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f'{BEGIN_OF_TEXT} $A',
        pair=f'{BEGIN_OF_TEXT} $A {BEGIN_OF_TEXT}:1 $B:1',
        special_tokens=[(BEGIN_OF_TEXT, tokenizer.token_to_id(BEGIN_OF_TEXT))],
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / 'tokenizer.json'))
    settings = {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'bos_token': BEGIN_OF_TEXT,
        'eos_token': END_OF_TEXT,
        'pad_token': END_OF_TEXT,
        'additional_special_tokens': [END_OF_TURN, *ROLE_MARKER.values()],
        'model_max_length': MAX_POSITIONS,
        'clean_up_tokenization_spaces': False,
        'chat_template': CHAT_TEMPLATE,
    }
    (folder / 'tokenizer_config.json').write_text(json.dumps(settings, indent=2) + '\n')

    chat = [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'Hello'}]
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False)
    assert rendered == BEGIN_OF_TEXT + render_chat(chat), rendered


# --- Tokens --------------------------------------------------------------------------------------


def tokenize(tokenizer: Tokenizer, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """All documents in one row, each from begin-of-text to end-of-text, and where each begins."""
    pieces, lengths = [], []
    for first in range(0, len(texts), 10_000):
        batch = [text + END_OF_TEXT for text in texts[first : first + 10_000]]
        for encoding in tokenizer.encode_batch_fast(batch):
            pieces.append(np.array(encoding.ids, dtype=np.int32))
            lengths.append(len(pieces[-1]))
    return np.concatenate(pieces), np.cumsum([0, *lengths[:-1]])


class Rows:
    """Draws rows of a given length, each of which begins where a document begins."""

    def __init__(self, tokens: np.ndarray, starts: np.ndarray, device: torch.device, seed: int):
        self.tokens = torch.from_numpy(tokens).to(device)
        self.starts = torch.from_numpy(starts[starts < len(tokens) - max(ROW_LENGTHS)]).to(device)
        self.generator = torch.Generator(device).manual_seed(seed)

    def draw(self, rows: int, length: int) -> torch.Tensor:
        """Token ids, int64 [rows, length]"""
        device = self.tokens.device
        chosen = torch.randint(len(self.starts), (rows,), generator=self.generator, device=device)
        index = self.starts[chosen][:, None] + torch.arange(length, device=device)
        return self.tokens[index].long()


# --- Model ---------------------------------------------------------------------------------------


def new_model(tokenizer: Tokenizer) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_theta=10_000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BEGIN_OF_TEXT),
        eos_token_id=tokenizer.token_to_id(END_OF_TEXT),
        pad_token_id=tokenizer.token_to_id(END_OF_TEXT),
    )
    model = LlamaForCausalLM(config)
    # An end of turn ends a reply as an end of text ends a story.
    end_ids = [tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END_OF_TURN)]
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=end_ids,
        pad_token_id=config.pad_token_id,
        do_sample=True,
        temperature=0.8,
        top_p=0.95,
    )
    return model


def loss_of(model: LlamaForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross entropy in nats. Text before a begin-of-text stays visible in its row;
    the model learns that it does not matter."""
    with torch.autocast(rows.device.type, dtype=torch.bfloat16, enabled=rows.device.type == 'cuda'):
        return model(input_ids=rows, labels=rows, use_cache=False).loss


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, validation: Rows, batches: int, batch_tokens: int) -> float:
    model.eval()
    validation.generator.manual_seed(0)  # the same rows every time
    losses = [
        loss_of(model, validation.draw(batch_tokens // ROW_LENGTHS[1], ROW_LENGTHS[1])).item()
        for _ in range(batches)
    ]
    model.train()
    return sum(losses) / batches


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Up in a line, then down along a cosine to a hundredth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(model, training: Rows, validation: Rows, args) -> list[dict[str, float]]:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': 0.1}, {'params': others, 'weight_decay': 0.0}],
        lr=args.peak_rate, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    log: list[dict[str, float]] = []
    recent: list[torch.Tensor] = []
    began = time.time()
    for step in range(args.steps):
        rate = learning_rate(step, args.steps, args.peak_rate, args.warmup)
        for group in optimizer.param_groups:
            group['lr'] = rate
        length = ROW_LENGTHS[step % len(ROW_LENGTHS)]
        loss = loss_of(model, training.draw(args.batch_tokens // length, length))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(loss.detach())

        if (step + 1) % args.evaluate_every == 0 or step + 1 == args.steps:
            log.append({
                'step': step + 1,
                'tokens': (step + 1) * args.batch_tokens,
                'learning_rate': round(rate, 7),
                'train_loss': round(torch.stack(recent).mean().item(), 4),
                'validation_loss': round(evaluate(model, validation, 8, args.batch_tokens), 4),
                'seconds': round(time.time() - began, 1),
            })  # fmt: skip
            recent.clear()
            print(log[-1], flush=True)
    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path(__file__).parent.parent / 'stories')
    parser.add_argument('--log', type=Path, default=Path(__file__).parent / 'loss.csv')
    parser.add_argument('--documents', type=int, default=500_000)
    parser.add_argument('--steps', type=int, default=7000)
    parser.add_argument('--batch-tokens', type=int, default=32_768)
    parser.add_argument('--peak-rate', type=float, default=2e-3)
    parser.add_argument('--warmup', type=int, default=200)
    parser.add_argument('--evaluate-every', type=int, default=250)
    parser.add_argument('--processes', type=int, default=multiprocessing.cpu_count())
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    torch.manual_seed(0)

    began = time.time()
    with multiprocessing.Pool(args.processes) as pool:
        texts = pool.map(partial(document, TRAIN_SEED), range(args.documents), chunksize=1000)
        validation_texts = pool.map(partial(document, VALIDATION_SEED), range(args.documents // 100 + 100))
    print(f'{len(texts)} documents in {time.time() - began:.0f} s', flush=True)

    tokenizer = train_tokenizer(texts[:50_000])
    save_tokenizer(tokenizer, args.out)
    tokens, starts = tokenize(tokenizer, texts)
    print(f'{len(tokens):,} tokens at {time.time() - began:.0f} s', flush=True)

    model = new_model(tokenizer).to(device)
    print(f'{sum(p.numel() for p in model.parameters()):,} parameters', flush=True)
    training = Rows(tokens, starts, device, seed=TRAIN_SEED)
    validation = Rows(*tokenize(tokenizer, validation_texts), device, seed=VALIDATION_SEED)
    log = train(model, training, validation, args)

    # What is kept is bfloat16, so its loss is the one to report.
    model = model.to(torch.bfloat16)
    model.save_pretrained(args.out)
    (args.out / 'model.safetensors').chmod(0o644)
    kept = evaluate(model.float(), validation, 8, args.batch_tokens)
    print(f'validation loss of the bfloat16 weights: {kept:.4f}, {time.time() - began:.0f} s in all')
    log.append({**log[-1], 'train_loss': '', 'validation_loss': round(kept, 4)})
    with args.log.open('w', newline='') as file:
        writer = csv.DictWriter(file, fieldnames=[*log[0], 'weights'], lineterminator='\n')
        writer.writeheader()
        for row in log:
            writer.writerow({**row, 'weights': 'bfloat16' if row is log[-1] else 'float32'})


if __name__ == '__main__':
    main()
