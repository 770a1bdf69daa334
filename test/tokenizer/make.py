#!/usr/bin/env python3
"""Creates three small tokenizers and records the results of Hugging Face's tokenizers and transformers.

    python test/tokenizer/make.py

Needs tokenizers 0.23 and transformers 5.17. Each of byte-bpe/ (as Llama 3), nfc-bpe/ (as Qwen) and sentencepiece/ (as
Llama 2) gets a tokenizer.json, a tokenizer_config.json and an expected.json:

    encode    for each difficult text: its ids with and without special tokens
    decode    for each list of ids: its text with and without special tokens
    stream    for each list of ids: the text that each id appends after a prompt
    chat      for each conversation, with and without add_generation_prompt: the rendered text and its ids
"""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).resolve().parent

TRAINING = """
A small boat lay on the sand, and the tide was coming in. "We'll need the oars," said Mira, "and don't forget the map."
Her brother laughed. He had walked 12 miles in 1998, he said, and 345 more since; he wasn't going to row as well!
Über den Fluß führte eine schöne Brücke. Le garçon déçu mangeait des crêpes à l'hôtel. El niño comió una piña.
Мальчик читал книгу у окна. 猫は窓のそばで眠っていた。小さな船が海に出た。 아이가 웃었다. 😀😀 🙂 👍🏽 ✨
def add(a, b):
    return a + b  # the sum
    if a > 10_000: return [x ** 2 for x in range(a)]
The tide, the boat, the map; the oars, the sand, the wind. Then the wind fell and the boat came home, home, home.
"""

TEXTS = [
    '',
    ' ',
    '   ',
    '\n',
    ' \n\n  \t ',
    'a',
    ' a',
    'Hello, world!',
    "We'll SHE'LL don't DON'T it’s",
    'the tide  was   coming in',
    'trailing space ',
    '1234567 and 3.14159 and 10_000',
    'tabs\tand\r\nlines\n\n\nend',
    'Fluß café café naïve',
    'Ελληνικά Русский العربية עברית हिन्दी ไทย',
    '猫は窓のそばで眠っていた。小さな船',
    '아이가 웃었다 한국어',
    '😀😀🙂 👍🏽 👩‍👩‍👧‍👦 🇩🇪',
    'zero​width‍joiner\u2028line\u0000nul\x7f',
    'ﬁ ligature ① Å Å 가 가',
    'a' * 70,
    '!!!???...---===>>>',
    'https://example.org/a?b=c&d=%20#e',
    'x\u00a0y\u3000z',
    '<|begin|>not a prompt<|end|>',
    '<s>user</s> text<|extra|>end',
    'lone \ufffd replacement',
    '𝒳𝓎𝓏 𐍈 🜁',
]

CHATS = [
    [{'role': 'user', 'content': 'Hello'}],
    [{'role': 'system', 'content': ' Be brief. '}, {'role': 'user', 'content': 'Tell me a story\nabout 😀'}],
    [
        {'role': 'user', 'content': 'One?'},
        {'role': 'assistant', 'content': 'Two.'},
        {'role': 'user', 'content': "<|end|> it's fine"},
    ],
]

# Templates with the constructs of the families' own: loops, conditions, filters, raise_exception.
HEADERS_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('there is no role ' + message.role) }}
    {%- endif %}
    {{- '<|start|>' + message['role'] + '\\n\\n' + message['content'] | trim + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant\\n\\n' }}
{%- endif %}
"""
TURNS_TEMPLATE = """{%- if tools is not none %}{{ raise_exception('no tools') }}{% endif -%}
{%- if messages[0].role == 'system' %}
<|start|>system
{{ messages[0].content }}<|end|>
{% else %}
<|start|>system
You write stories.<|end|>
{% endif %}
{% for message in messages if message.role != 'system' %}
<|start|>{{ message.role }}
{{ message.content }}{{ '<|end|>' if not loop.last or message.role == 'user' else '' }}
{% endfor %}
{% if add_generation_prompt %}<|start|>assistant
{% endif %}"""
INSTRUCTION_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('turns must alternate, the user first') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(split, specials):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior='isolated'),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([TRAINING] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in specials])
    return tokenizer


def byte_bpe():
    tokenizer = byte_level(LLAMA3_SPLIT, ['<|begin|>', '<|end|>', '<|start|>'])
    begin = tokenizer.token_to_id('<|begin|>')
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single='<|begin|> $A', pair='<|begin|> $A $B', special_tokens=[('<|begin|>', begin)]
            ),
        ]
    )
    return tokenizer, {
        'bos_token': '<|begin|>',
        'eos_token': {'__type': 'AddedToken', 'content': '<|end|>', 'special': True},
        'chat_template': HEADERS_TEMPLATE,
        'clean_up_tokenization_spaces': True,
    }


def nfc_bpe():
    tokenizer = byte_level(QWEN_SPLIT, ['<|end|>', '<|start|>'])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken('<|extra|>', special=False, normalized=False)])
    return tokenizer, {
        'bos_token': None,
        'eos_token': '<|end|>',
        'pad_token': '<|end|>',
        'chat_template': [
            {'name': 'tool_use', 'template': 'none'},
            {'name': 'default', 'template': TURNS_TEMPLATE},
        ],
    }


def sentencepiece():
    bytes_ = [f'<0x{i:02X}>' for i in range(256)]
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')])
    words = [w for line in TRAINING.splitlines() for w in line.encode('ascii', 'ignore').decode().split()]
    trained.train_from_iterator(words * 4, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    model = json.loads(trained.to_str())['model']
    vocab = ['<unk>', '<s>', '</s>', *bytes_]
    vocab += sorted((each for each in model['vocab'] if each not in vocab), key=model['vocab'].get)
    for letter in '▁éüß':
        if letter not in vocab:
            vocab.append(letter)
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(' ')) for merge in model['merges']]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={each: i for i, each in enumerate(vocab)},
            merges=merges,
            unk_token='<unk>',
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = trained.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(each, special=True, normalized=False) for each in ['<unk>', '<s>', '</s>']])
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A', pair='<s> $A <s> $B', special_tokens=[('<s>', 1)]
    )
    return tokenizer, {
        'bos_token': '<s>',
        'eos_token': '</s>',
        'unk_token': '<unk>',
        'chat_template': INSTRUCTION_TEMPLATE,
    }


def recorded(folder, tokenizer):
    def ids(text, special):
        return tokenizer.encode(text, add_special_tokens=special).ids

    def step_by_step(prompt, tokens, skip):
        """The text that each token appends ('' for the stream's None), and the rest at the end."""
        stream = DecodeStream(ids=prompt, skip_special_tokens=skip)
        return [stream.step(tokenizer, token) or '' for token in tokens]

    encode = [{'text': text, 'ids': ids(text, False), 'withSpecial': ids(text, True)} for text in TEXTS]

    everything = [token for text in TEXTS for token in ids(text, True)]
    lists = [ids(text, True) for text in TEXTS] + [everything]
    if '<0x00>' not in tokenizer.get_vocab():
        # Also invalid UTF-8. Not with byte fallback: this library replaces a whole run of bytes for one invalid
        # byte, other implementations keep valid characters.
        lists += [everything[::-1], everything[1::3]]
    decode = [
        {
            'ids': each,
            'text': tokenizer.decode(each, skip_special_tokens=True),
            'withSpecial': tokenizer.decode(each, skip_special_tokens=False),
        }
        for each in lists
    ]

    prompt = ids('the boat', False)
    stream = [
        {'ids': ids(text, False), 'deltas': step_by_step(prompt, ids(text, False), True)}
        for text in TEXTS
        if '\ufffd' not in text
    ]

    fast = PreTrainedTokenizerFast.from_pretrained(folder)
    chat = []
    for messages in CHATS:
        for prompt_too in (False, True):
            try:
                text = fast.apply_chat_template(messages, add_generation_prompt=prompt_too, tokenize=False)
            except Exception as error:  # jinja2's error with the template's message
                chat.append({'messages': messages, 'addGenerationPrompt': prompt_too, 'error': str(error)})
                continue
            chat.append(
                {'messages': messages, 'addGenerationPrompt': prompt_too, 'text': text, 'ids': ids(text, False)}
            )
    return {
        'vocabSize': tokenizer.get_vocab_size(),
        'bosTokenId': fast.bos_token_id,
        'eosTokenId': fast.eos_token_id,
        'encode': encode,
        'decode': decode,
        'stream': stream,
        'chat': chat,
    }


def main():
    for name, make in {'byte-bpe': byte_bpe, 'nfc-bpe': nfc_bpe, 'sentencepiece': sentencepiece}.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        tokenizer, config = make()
        tokenizer.save(str(folder / 'tokenizer.json'), pretty=False)
        (folder / 'tokenizer_config.json').write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n')
        expected = recorded(folder, Tokenizer.from_file(str(folder / 'tokenizer.json')))
        lines = ',\n'.join(f'{json.dumps(key)}: {json.dumps(value)}' for key, value in expected.items())
        (folder / 'expected.json').write_text('{\n' + lines + '\n}\n')
        print(f'{name}: {expected["vocabSize"]} tokens')


if __name__ == '__main__':
    main()
