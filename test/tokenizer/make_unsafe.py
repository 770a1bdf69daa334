"""Writes unsafe.json: tokenizer.json files on which Python's tokenizers 0.23.2 panics.

Each case runs in a separate process with Python's build; a case that does not panic, or end that
process, is an error. `field`: path of the fault. `text`: the text that triggers it after loading.

    python make_unsafe.py
"""

import base64
import json
import os
import struct
import sys
from pathlib import Path

from tokenizers import Tokenizer

BASE = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]},
}


def added(content, id, **flags):
    off = dict.fromkeys(["special", "single_word", "lstrip", "rstrip", "normalized"], False)
    return {"id": id, "content": content, **off, **flags}


def replace(regex, content="x"):
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": content}


def split(regex):
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def bpe(vocab, merges, **fields):
    return {"model": {"type": "BPE", "vocab": vocab, "merges": merges, **fields}}


def template(single, special={}, **fields):
    pair = [{"Sequence": {"id": i, "type_id": 0}} for i in "AB"]
    whole = {"type": "TemplateProcessing", "single": single, "pair": pair}
    return {**whole, "special_tokens": special, **fields}


def charsmap(units, texts):
    data = struct.pack("<I", 4 * len(units)) + struct.pack(f"<{len(units)}I", *units) + texts
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}


A = {"Sequence": {"id": "A", "type_id": 0}}
B = {"Sequence": {"id": "B", "type_id": 0}}
X = {"SpecialToken": {"id": "[X]", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": False}
NOTHING = {"type": "Replace", "pattern": {"String": "X"}, "content": ""}
RETRIES = "a" * 40 + "b"
FIXED = {"type": "FixedLength", "length": 0}


def trie(value):
    units = [0] * 512
    units[0] = 256 << 10  # the root's children are in the second block
    units[256 ^ ord("a")] = (1 << 10) | (1 << 8) | ord("a")
    units[(256 ^ ord("a")) ^ 1] = value | 1 << 31
    return units


CASES = [
    ("a prefix longer than a merge", "model.merges[0]", None, bpe({"a": 0, "b": 1}, ["a b"], continuing_subword_prefix="######")),
    ("a prefix longer than a merge's second half", "model.merges[0]", None, bpe({"aaaaaaaa": 0, "b": 1}, ["aaaaaaaa b"], continuing_subword_prefix="##")),
    ("a prefix that ends inside a character", "model.merges[0]", None, bpe({"a": 0, "\u00e9": 1, "ab": 2}, [["a", "\u00e9"]], continuing_subword_prefix="#")),
    ("a merge longer than every token", "model.merges[0]", None, bpe({"a": 0, "b": 1}, ["a b"])),
    ("a merge of pairs longer than every token", "model.merges[1]", None, bpe({"a": 0, "b": 1, "ab": 2}, [["a", "b"], ["ab", "b"]])),
    ("a merge longer than every token, without a type", "model.merges[0]", None, {"model": {"vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}),
    ("a FixedLength of 0", "pre_tokenizer.length", "a", {"pre_tokenizer": FIXED}),
    ("a FixedLength of 0 in a Sequence", "pre_tokenizer.pretokenizers[0].pretokenizers[0].length", "a", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Sequence", "pretokenizers": [FIXED]}]}}),
    ("a template of sequence B", "post_processor.single[0].Sequence.id", "a", {"post_processor": template([B])}),
    ("a template of sequence B, as a list", "post_processor.single[0]", "a", {"post_processor": template([{"Sequence": ["B", 0]}])}),
    ("a template without its special token", "post_processor.single[0].SpecialToken.id", "a", {"post_processor": template([X, A])}),
    ("a template's special token under another name", "post_processor.single[0].SpecialToken.id", "a", {"post_processor": template([X, A], {"[Z]": {"id": "[X]", "ids": [1], "tokens": ["[X]"]}})}),
    ("a template of another type", "post_processor.type", "a", {"post_processor": template([B], type="Foo")}),
    ("a template after a template", "post_processor.processors[1].type", "a", {"post_processor": {"type": "Sequence", "processors": [template([A, A, A]), template([A])]}}),
    ("a template after an empty template", "post_processor.processors[1].type", "a", {"post_processor": {"type": "Sequence", "processors": [template([]), template([A])]}}),
    ("an empty charsmap", "normalizer.precompiled_charsmap", None, {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}),
    ("a charsmap in a Sequence without a type", "normalizer.type", None, {"normalizer": {"normalizers": [{"type": "Precompiled", "precompiled_charsmap": ""}]}}),
    ("a charsmap without a trie", "normalizer.precompiled_charsmap", "a", {"normalizer": charsmap([], b"a\0")}),
    ("a truncated charsmap", "normalizer.precompiled_charsmap", None, {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(struct.pack("<IIII", 400, 0, 0, 0)).decode()}}),
    ("a charsmap with a trie that points outside itself", "normalizer.precompiled_charsmap", "a", {"normalizer": charsmap([1024 << 10] + [0] * 255, b"a\0")}),
    ("a charsmap with an offset after its texts", "normalizer.precompiled_charsmap", "a", {"normalizer": charsmap(trie(100), b"b\0")}),
    ("a charsmap with an offset in a character", "normalizer.precompiled_charsmap", "a", {"normalizer": charsmap(trie(1), b"\xc3\xa9\0")}),
    ("a charsmap with invalid UTF-8", "normalizer.precompiled_charsmap", None, {"normalizer": charsmap(trie(0), b"\xff\0")}),
    ("an empty Prepend", "normalizer.prepend", "\u00e9b", {"normalizer": {"type": "Prepend", "prepend": ""}, "pre_tokenizer": BYTES}),
    ("a Replace of an empty match before a pre-tokenizer", "normalizer.pattern", "a", {"normalizer": replace("^", "\u00e9"), "pre_tokenizer": BYTES}),
    ("a Replace of a lookahead before a pre-tokenizer", "normalizer.normalizers[0].pattern", "a", {"normalizer": {"type": "Sequence", "normalizers": [replace("(?=a)", "\u00e9")]}, "pre_tokenizer": BYTES}),
    ("nested quantifiers in a Split", "pre_tokenizer.pattern.Regex", RETRIES, {"pre_tokenizer": split("(a+)+$")}),
    ("equal alternatives", "pre_tokenizer.pattern.Regex", RETRIES, {"pre_tokenizer": split("(?:a|a)*$")}),
    ("optional characters", "pre_tokenizer.pattern.Regex", "a" * 35 + "b", {"pre_tokenizer": split("a?" * 30 + "a" * 30 + "$")}),
    ("three quantifiers in a row", "normalizer.pattern.Regex", "a" * 600 + "b", {"normalizer": replace("a*a*a*$")}),
    ("quantifiers with an optional word between", "pre_tokenizer.pattern.Regex", "a" * 6000 + "!", {"pre_tokenizer": split(r"\w+\s*\w+$")}),
    ("a lookahead of equal alternatives", "pre_tokenizer.pattern.Regex", RETRIES + "c", {"pre_tokenizer": split("(?=(?:a|a)*c)")}),
    ("a Replace without a type", "normalizer.type", RETRIES, {"normalizer": {"pattern": {"Regex": "(a+)+$"}, "content": "x"}}),
    ("a Replace as a list", "normalizer", RETRIES, {"normalizer": [{"Regex": "(a+)+$"}, "x"]}),
    ("a decoder's nested quantifiers", "decoder.pattern.Regex", RETRIES, {"decoder": replace("(a+)+$"), **bpe({RETRIES: 0}, [], ignore_merges=True)}),
    ("a Strip as a list", "decoder", "a", {"decoder": ["a", 2, 2]}),
    ("an added token that normalizes to an empty string", "the added token 'X'", "\u00e9", {"normalizer": NOTHING, "added_tokens": [added("X", 3, normalized=True, lstrip=True)]}),
    ("white space that another token absorbs", "the added token '  '", "<s>    a", {"added_tokens": [added("<s>", 3, rstrip=True), added("  ", 4, lstrip=True)]}),
]  # fmt: skip


def survives(tokenizer, text):
    """Runs in a separate process, because some cases corrupt memory."""
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            loaded = Tokenizer.from_str(json.dumps({**BASE, **tokenizer}))
            if text is not None:
                loaded.decode(loaded.encode(text).ids)
        except Exception:
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


written = []
for name, field, text, tokenizer in CASES:
    if survives(tokenizer, text):
        sys.exit(f"Python's tokenizers does not panic: {name}")
    written.append({"name": name, "field": field, "tokenizer": {**BASE, **tokenizer}})
path = Path(__file__).with_name("unsafe.json")
path.write_text(json.dumps(written, indent=1) + "\n")
