#!/usr/bin/env python3
"""Records the results of Hugging Face's tokenizers and transformers for small tokenizers of one feature each.

    python test/tokenizer/make_cases.py

Needs tokenizers 0.23 and transformers 5.17. Writes, beside itself:

    encoders.json   tokenizers, with the ids of texts with and without special tokens, and those ids' text
    decoders.json   one vocabulary, and for each decoder the text of lists of ids, special tokens kept and skipped
    special.json    folders' files, with the special tokens that transformers reads from them: ids by name, the
                    ids of texts (also with split_special_tokens), and those ids' text without special tokens
"""

import base64
import json
import random
import struct
import tempfile
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent


def byte_letters():
    """GPT-2's character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


BYTE_LEVEL = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
BYTE_TOKENS = [f'<0x{byte:02X}>' for byte in range(256)]


def tokenizer_json(model, **parts):
    empty = dict.fromkeys(['normalizer', 'pre_tokenizer', 'post_processor', 'decoder', 'truncation', 'padding'])
    return {'version': '1.0', 'added_tokens': [], **empty, 'model': model, **parts}


def added(id, content, special=False, **flags):
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, **flags}
    return {'id': id, 'content': content, 'special': special, **flags}


def bpe(vocab, merges=(), **options):
    vocab = {token: i for i, token in enumerate(vocab)}
    return {'type': 'BPE', 'vocab': vocab, 'merges': [list(merge) for merge in merges], **options}


def words(*vocab):
    return {'type': 'WordLevel', 'vocab': {token: i for i, token in enumerate(['?', *vocab])}, 'unk_token': '?'}


def bytes_json(**parts):
    return tokenizer_json(bpe(byte_letters()), pre_tokenizer=BYTE_LEVEL, decoder=BYTE_LEVEL, **parts)


def split(regex, behavior, invert=False):
    return {'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': behavior, 'invert': invert}


def charsmap(replacements):
    """A precompiled charsmap: a double-array trie (darts-clone's units) of the keys, and their replacement texts."""
    texts, places = b'', {}
    for key, text in sorted(replacements.items()):
        places[key.encode()] = len(texts)
        texts += text.encode() + b'\0'
    units = {0: 0}
    taken = {0}

    def build(node, prefix):
        labels = sorted({key[len(prefix)] if len(key) > len(prefix) else 0 for key in places if key.startswith(prefix)})
        base = next(b for b in range(1, 1 << 20) if all((node ^ b ^ label) not in taken | {0} for label in labels))
        units[node] |= base << 10 | ((1 << 8) if 0 in labels else 0)
        for label in labels:
            taken.add(node ^ base ^ label)
            units[node ^ base ^ label] = label if label else 1 << 31 | places[prefix]
        for label in labels:
            if label:
                build(node ^ base ^ label, prefix + bytes([label]))

    build(0, b'')
    size = max(units) + 257
    trie = struct.pack(f'<{size}I', *[units.get(i, 0) for i in range(size)])
    return base64.b64encode(struct.pack('<I', len(trie)) + trie + texts).decode()


def encoders():
    metaspace = {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': 'always', 'split': True}
    unigram = [['<unk>', 0.0], *[[token, -20.0] for token in BYTE_TOKENS], ['▁', -3.0], ['▁a', -2.0], ['b', -2.5]]
    yield (
        'Unigram with byte_fallback',
        tokenizer_json(
            {'type': 'Unigram', 'unk_id': 0, 'vocab': unigram, 'byte_fallback': True},
            pre_tokenizer=metaspace,
            decoder={'type': 'Sequence', 'decoders': [{'type': 'ByteFallback'}, metaspace]},
        ),
        ['a b', 'a\tb', 'ab 😀', 'Привет', '\ufeffb', ''],
    )
    yield (
        'Unigram without byte_fallback',
        tokenizer_json(
            {'type': 'Unigram', 'unk_id': 0, 'vocab': [['<unk>', 0.0], ['▁a', -2.0], ['b', -2.5], ['▁', -3.0]]},
            pre_tokenizer=metaspace,
            decoder=metaspace,
        ),
        ['a b', 'a\tb', 'ab😀😀b'],
    )
    digits = words('٣٤', '12', '²', '½', 'x', 'y', '\u0085', '\ufeff', '\u00a0', ' ', 'Ⅻ')
    yield (
        r'Unicode \d and \s',
        tokenizer_json(
            digits,
            pre_tokenizer={
                'type': 'Sequence',
                'pretokenizers': [split(r'\d+', 'Isolated'), split(r'\s+', 'Isolated')],
            },
        ),
        ['x٣٤y', 'x12y', 'x²y', 'x½y', 'x\u0085y', 'x\ufeffy', 'x\u00a0y', 'xⅫy', '²\u0085½'],
    )
    yield (
        'white space',
        tokenizer_json(digits, pre_tokenizer={'type': 'WhitespaceSplit'}),
        ['x\u0085y', 'x\ufeffy', 'x\u00a0y', 'x\u001cy', 'x\u200by', 'x\u2028y', '  x  y '],
    )
    yield (
        'Digits',
        tokenizer_json(
            words('a', '1', '2', '²', '½', '٣', '12'),
            pre_tokenizer={'type': 'Digits', 'individual_digits': True},
        ),
        ['a12', 'a²a', 'a½a', 'a٣a', '1a2'],
    )
    for behavior in ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous']:
        pieces = words('a', 'b', '-', '--', 'a-', '-a', '-b', 'b-', '--b', 'a--', ' ', 'a-b')
        yield (
            f'Split {behavior}',
            tokenizer_json(pieces, pre_tokenizer=split('-', behavior)),
            ['a-b', 'a--b', '-a', 'b-', '--', 'a', ''],
        )
        yield (
            f'Split {behavior}, inverted',
            tokenizer_json(pieces, pre_tokenizer=split('[ab]', behavior, invert=True)),
            ['a-b', 'a--b', '-a', 'b-', 'ab'],
        )
        yield (
            f'Punctuation {behavior}',
            tokenizer_json(pieces, pre_tokenizer={'type': 'Punctuation', 'behavior': behavior}),
            ['a-b', 'a--b', '-a', 'b-'],
        )
    yield (
        'added tokens',
        bytes_json(
            added_tokens=[
                added(256, 'the', single_word=True),
                added(257, '[L]', lstrip=True),
                added(258, '[R]', rstrip=True),
                added(259, '[M]', special=True, lstrip=True, rstrip=True),
                added(260, 'the end', single_word=True),
                added(261, '<a b>'),
            ]
        ),
        [
            'the tide', 'other', 'thé the-the _the the_', 'a  [L] b', 'a [R]  b', ' \u00a0[M]\u0085\n x',
            'the end', 'the ending', '<a b>', '²the the²',
        ],
    )
    yield (
        'normalized added tokens',
        bytes_json(
            normalizer={'type': 'Sequence', 'normalizers': [{'type': 'NFD'}, {'type': 'StripAccents'}, {'type': 'Lowercase'}]},
            added_tokens=[
                added(256, 'Café', normalized=True),
                added(257, 'Thé', normalized=False),
                added(258, '<S>', special=True, normalized=True),
                added(259, '<t>', special=True, normalized=True),
            ],
        ),
        ['CAFÉ', 'cafe', 'Café', 'THÉ', 'Thé', 'Ünï\u0301çø\u0327de ½ ﬁ', 'a\u20ddb', 'İ', '<S>a<s><T>'],
    )
    yield (
        'a token __proto__',
        tokenizer_json(words('a', '__proto__', 'constructor'), pre_tokenizer={'type': 'WhitespaceSplit'}),
        ['a __proto__ constructor toString'],
    )
    yield (
        'a charsmap',
        bytes_json(
            normalizer={
                'type': 'Precompiled',
                'precompiled_charsmap': charsmap({'ﬁ': 'fi', '½': '1⁄2', '\u00a0': ' ', 'ab': 'X', '\u200b': ''}),
            }
        ),
        ['ﬁn', 'x½y', 'a\u00a0b', 'ab', 'a\u200bb', 'plain', 'ﬁ\u0301'],
    )
    pieces = ['[UNK]', '[CLS]', '[SEP]', 'the', 'tide', '##s', '.', 'do', 'not', 'cafe', "'", 's', '猫', '##e', 't']
    yield (
        'WordPiece',
        tokenizer_json(
            {
                'type': 'WordPiece',
                'vocab': {token: i for i, token in enumerate(pieces)},
                'unk_token': '[UNK]',
                'continuing_subword_prefix': '##',
                'max_input_chars_per_word': 12,
            },
            normalizer={
                'type': 'BertNormalizer',
                'clean_text': True,
                'handle_chinese_chars': True,
                'strip_accents': None,
                'lowercase': True,
            },
            pre_tokenizer={'type': 'BertPreTokenizer'},
            post_processor={'type': 'BertProcessing', 'sep': ['[SEP]', 2], 'cls': ['[CLS]', 1]},
            decoder={'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
            added_tokens=[added(i, pieces[i], special=True) for i in range(3)],
        ),
        ['The tides.', "do not the tide's.", 'Café 猫猫', 'thethethethethe', '\u0000the\ufffd tide\u200b', ''],
    )
    yield (
        'BPE that fuses what it does not know',
        tokenizer_json(
            bpe(['<unk>', 'a', 'b', 'ab</w>', 'b</w>', 'a</w>'], [('a', 'b</w>')], unk_token='<unk>', fuse_unk=True, end_of_word_suffix='</w>'),
            pre_tokenizer={'type': 'WhitespaceSplit'},
            decoder={'type': 'BPEDecoder', 'suffix': '</w>'},
        ),
        ['ab ab', 'a猫猫b', 'ba ab', 'é'],
    )
    yield (
        'truncation and padding',
        bytes_json(
            truncation={'direction': 'Right', 'max_length': 3, 'strategy': 'LongestFirst', 'stride': 0},
            padding={
                'strategy': {'Fixed': 8},
                'direction': 'Right',
                'pad_to_multiple_of': None,
                'pad_id': 0,
                'pad_type_id': 0,
                'pad_token': '!',
            },
        ),
        ['a', 'abcdef'],
    )


def record_encoder(name, file, texts):
    tokenizer = Tokenizer.from_str(json.dumps(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cases = []
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        with_special = tokenizer.encode(text).ids
        decoded = tokenizer.decode(with_special, skip_special_tokens=True)
        kept = tokenizer.decode(with_special, skip_special_tokens=False)
        cases.append({'text': text, 'ids': ids, 'withSpecial': with_special, 'decoded': decoded, 'kept': kept})
    return {'name': name, 'tokenizer': file, 'cases': cases}


LETTERS = byte_letters()
DECODER_VOCAB = [
    '?', 'a', 'b', 'ab', ' ab', 'a b', '▁a', '▁▁', '▁', 'x▁y', '##b', '##', '.', ' .', "'", ' ', '  ', "n't", 'do', 'not',
    ' do not', '<0x61>', '<0x0A>', '<0xE2>', '<0x96>', '<0x81>', '<0xFF>', '<0xEF>', '<0xBB>', '<0xBF>', '<0xBD>', '<0x+F>',
    '<0xF0>', '<0x9F>', '<0x98>', '<0x80>', '<0xe9>', 'Ġa', 'Ċ', 'ï', '»', '¿', 'é', *[LETTERS[b] for b in '😀'.encode()],
    LETTERS[0xE7] + LETTERS[0x8C], LETTERS[0xAB] + 'x' + LETTERS[0xC3], '</w>', 'a</w>', '</', 'w>', 'b</w>c', '|', '<pad>',
    '\ufeffx', '猫', '😀', '\ufffd', '\n', '\n ', 'aa', 'ba', '$1', '<s>', '</s>', '<x y>',
]  # fmt: skip
SPECIAL = ['<s>', '</s>', '<pad>']


def decoders():
    def sequence(*inner):
        return {'type': 'Sequence', 'decoders': list(inner)}

    def replace(text, content, kind='String'):
        return {'type': 'Replace', 'pattern': {kind: text}, 'content': content}

    def strip(start, stop, content=' '):
        return {'type': 'Strip', 'content': content, 'start': start, 'stop': stop}

    def metaspace(scheme):
        return {'type': 'Metaspace', 'replacement': '▁', 'prepend_scheme': scheme, 'split': True}

    def ctc(cleanup):
        return {'type': 'CTC', 'pad_token': '<pad>', 'word_delimiter_token': '|', 'cleanup': cleanup}

    def wordpiece(cleanup, prefix='##'):
        return {'type': 'WordPiece', 'prefix': prefix, 'cleanup': cleanup}

    byte_level = {**BYTE_LEVEL, 'use_regex': True}
    fallback, fuse, bpe_decoder = {'type': 'ByteFallback'}, {'type': 'Fuse'}, {'type': 'BPEDecoder', 'suffix': '</w>'}
    return {
        'none': None,
        'ByteLevel': byte_level,
        'ByteFallback': fallback,
        'Fuse': fuse,
        'Metaspace always': metaspace('always'),
        'Metaspace first': metaspace('first'),
        'Metaspace never': metaspace('never'),
        'WordPiece': wordpiece(False),
        'WordPiece with cleanup': wordpiece(True),
        'WordPiece without prefix': wordpiece(False, ''),
        'BPEDecoder': bpe_decoder,
        'BPEDecoder without suffix': {'type': 'BPEDecoder', 'suffix': ''},
        'CTC': ctc(False),
        'CTC with cleanup': ctc(True),
        'Strip': strip(1, 1),
        'Strip letters': strip(2, 1, 'a'),
        'Replace': replace('a', 'aa'),
        'Replace without pattern': replace('', 'x'),
        'Replace by a regular expression': replace(r'[ab]+|\s', '<$1>', 'Regex'),
        'as Llama 2': sequence(replace('▁', ' '), fallback, fuse, strip(1, 0)),
        'as llm-jp': sequence(fallback, replace('▁', ' ', 'Regex'), fuse, replace('(?<!\\n)^ ', '', 'Regex')),
        'as Gemma': sequence(replace('▁', ' '), fallback, fuse),
        'as Unigram': sequence(fallback, metaspace('always')),
        'nested': sequence(sequence(replace('▁', ' ')), sequence(fallback, sequence(fuse)), strip(0, 2)),
        'Fuse, Replace over tokens': sequence(fuse, replace('ab', 'ba')),
        'Fuse, Replace repeated letters': sequence(fuse, replace('aab', '-')),
        'Fuse, Replace by a regular expression': sequence(fuse, replace(r'(a|b)+$|^\s', '*', 'Regex')),
        'Fuse, Strip': sequence(fuse, strip(2, 2)),
        'Fuse, WordPiece': sequence(fuse, wordpiece(True)),
        'Fuse, Metaspace': sequence(fuse, metaspace('always')),
        'Fuse, BPEDecoder': sequence(fuse, bpe_decoder),
        'Fuse, CTC': sequence(fuse, ctc(True)),
        'Fuse, ByteFallback': sequence(fuse, fallback),
        'Fuse, ByteLevel': sequence(fuse, byte_level),
        'ByteLevel, Strip, Replace': sequence(byte_level, strip(1, 1), replace('a', '')),
        'Strip, ByteLevel': sequence(strip(1, 1, 'a'), byte_level),
        'Metaspace, ByteLevel': sequence(metaspace('always'), byte_level),
        'ByteFallback, ByteLevel': sequence(fallback, byte_level),
        'WordPiece, Fuse, Replace': sequence(wordpiece(True), fuse, replace(' a', 'A')),
        'CTC, WordPiece': sequence(ctc(True), wordpiece(False)),
        'BPEDecoder, Metaspace': sequence(bpe_decoder, metaspace('always')),
        'ByteFallback, ByteFallback, Strip': sequence(fallback, fallback, strip(1, 1)),
    }


def decoded(tokenizer, ids, skip):
    """None if the library panics, as Strip does on a piece that its two ends consume."""
    try:
        return tokenizer.decode(ids, skip_special_tokens=skip)
    except BaseException as error:
        if type(error).__name__ != 'PanicException':
            raise
        return None


def record_decoders():
    random.seed(11)
    size = len(DECODER_VOCAB)
    byte_ids = [i for i, token in enumerate(DECODER_VOCAB) if token.startswith('<0x')]
    lists = [[], [size + 5], *[[i] for i in range(size)]]
    lists += [[random.randrange(size + 2) for _ in range(random.randrange(2, 14))] for _ in range(36)]
    lists += [[random.choice([*byte_ids, 6, 1]) for _ in range(random.randrange(2, 9))] for _ in range(24)]
    ids = {token: i for i, token in enumerate(DECODER_VOCAB)}
    lists.append([ids[token] for token in ['<0xEF>', '<0xBB>', '<0xBF>', 'a']])
    lists.append([ids[token] for token in ['ï', '»', '¿', 'a']])
    lists.append([ids[token] for token in ['<0xEF>', '<0xBF>', '<0xBD>', 'a']])
    results = {}
    for name, decoder in decoders().items():
        file = tokenizer_json(words(*DECODER_VOCAB[1:]), decoder=decoder)
        file['added_tokens'] = [added(ids[token], token, special=True) for token in SPECIAL]
        file['added_tokens'].append(added(ids['<x y>'], '<x y>'))
        tokenizer = Tokenizer.from_str(json.dumps(file))
        kept = [decoded(tokenizer, each, False) for each in lists]
        skipped = [decoded(tokenizer, each, True) for each in lists]
        results[name] = {'decoder': decoder, 'kept': kept, 'skipped': skipped}
    return {'vocab': DECODER_VOCAB, 'special': SPECIAL, 'lists': lists, 'decoders': results}


def special_folders():
    def config(**fields):
        return {'tokenizer_class': 'PreTrainedTokenizerFast', **fields}

    def entry(content, special, **flags):
        return {key: value for key, value in added(0, content, special, **flags).items() if key != 'id'}

    yield 'names', {'tokenizer_config.json': config(bos_token='<s>', eos_token='</s>', image_token='<tool>')}
    yield 'a token that is new', {'tokenizer_config.json': config(eos_token='<end>', pad_token='<pad>')}
    yield 'a token that was not special', {'tokenizer_config.json': config(eos_token='<tool>')}
    yield (
        'tokens that are objects',
        {
            'tokenizer_config.json': config(
                eos_token={'__type': 'AddedToken', **entry('<end>', True, lstrip=True)},
                image_token={'__type': 'AddedToken', **entry('<image>', True, rstrip=True)},
            )
        },
    )
    yield 'no names', {'tokenizer_config.json': config(bos_token=None)}
    yield (
        'added_tokens_decoder',
        {
            'tokenizer_config.json': config(
                eos_token='<end>',
                added_tokens_decoder={
                    '261': entry('<late>', False),
                    '256': entry('<s>', True),
                    '258': entry('<tool>', True),
                    '259': entry('<end>', False, lstrip=True),
                    '260': entry('<new>', True, rstrip=True),
                },
            ),
            'special_tokens_map.json': {'pad_token': '<ignored>'},
        },
    )
    yield (
        'special_tokens_map.json',
        {
            'tokenizer_config.json': config(bos_token='<s>', eos_token='<not this>', sep_token='<nor this>'),
            'special_tokens_map.json': {
                'eos_token': {'content': '</s>', 'lstrip': False, 'normalized': False, 'rstrip': False, 'single_word': False},
                'pad_token': {'content': '<pad>', 'lstrip': True, 'normalized': False, 'rstrip': False, 'single_word': False},
                'sep_token': None,
                'additional_special_tokens': ['<more>'],
            },
        },
    )
    yield 'additional_special_tokens', {'tokenizer_config.json': config(additional_special_tokens=['<more>', '<tool>', '<s>'])}
    yield 'extra_special_tokens', {'tokenizer_config.json': config(extra_special_tokens={'image_token': '<image>'})}
    yield (
        'added_tokens.json',
        {
            'tokenizer_config.json': config(eos_token='<end>'),
            'added_tokens.json': {'<late>': 260, '<end>': 259},
        },
    )


SPECIAL_TEXTS = [
    'a<s>b</s> <tool> c', '<end> <new>  x', '  <end><pad>', '<more><image><late>', '<not this><ignored>', '<<s>>', 's>',
]  # fmt: skip


def record_special():
    base = bytes_json(
        added_tokens=[added(256, '<s>', special=True), added(257, '</s>', special=True), added(258, '<tool>')],
        post_processor={
            'type': 'TemplateProcessing',
            'single': [{'SpecialToken': {'id': '<s>', 'type_id': 0}}, {'Sequence': {'id': 'A', 'type_id': 0}}],
            'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}],
            'special_tokens': {'<s>': {'id': '<s>', 'ids': [256], 'tokens': ['<s>']}},
        },
    )
    folders = []
    for name, files in special_folders():
        with tempfile.TemporaryDirectory() as folder:
            files = {'tokenizer.json': base, **files}
            for file, content in files.items():
                (Path(folder) / file).write_text(json.dumps(content))
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            splitting = PreTrainedTokenizerFast.from_pretrained(folder, split_special_tokens=True)
        rust, splitter = tokenizer.backend_tokenizer, splitting.backend_tokenizer
        named = {key: value for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        cases = []
        for text in SPECIAL_TEXTS:
            ids = rust.encode(text).ids
            cases.append(
                {
                    'text': text,
                    'ids': ids,
                    'split': splitter.encode(text).ids,
                    'decoded': rust.decode(ids, skip_special_tokens=True),
                }
            )
        size = rust.get_vocab_size()
        special = [i for i in range(size) if rust.decode([i]) == '' and rust.decode([i], skip_special_tokens=False) != '']
        ids = {key: tokenizer.convert_tokens_to_ids(value) for key, value in named.items()}
        folders.append({'name': name, 'files': files, 'named': named, 'ids': ids, 'special': special, 'cases': cases})
    return folders


def write(file, values):
    (HERE / file).write_text(json.dumps(values, ensure_ascii=False, separators=(',', ':')) + '\n')
    print(file, (HERE / file).stat().st_size)


def main():
    write('encoders.json', [record_encoder(*each) for each in encoders()])
    write('decoders.json', record_decoders())
    write('special.json', record_special())


if __name__ == '__main__':
    main()
