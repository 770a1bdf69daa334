"""Conversations: a greeting, a request for a story and the story, thanks, another story.

The assistant is a storyteller and says so when it is asked for anything else.
"""

from __future__ import annotations

import random
import re

from grammar import Story, expand, story
from world import KINDS, with_article

Message = dict[str, str]

# Where a message begins (by role) and ends. The chat template in train.py writes the same text.
ROLE_MARKER = {'system': '<|system|>', 'user': '<|user|>', 'assistant': '<|assistant|>'}
END_OF_TURN = '<|end_of_turn|>'


def render_chat(messages: list[Message]) -> str:
    return ''.join(ROLE_MARKER[m['role']] + m['content'] + END_OF_TURN for m in messages)


SYSTEM = (
    'You are a storyteller.', 'You are a helpful assistant.', 'You tell short stories for children.',
    'You are a friendly storyteller. Use simple words.', 'You are a friendly assistant.',
    'Answer in simple words.',
)

GREETINGS = (
    'Hello', 'Hello!', 'Hello.', 'hello', 'Hi', 'Hi!', 'hi', 'Hey', 'Hi there!', 'Hello there!', 'Hey there!',
    'Good morning!', 'Good evening!', 'Hello, how are you?', 'Hi, how are you?', 'Hello, my name is {name}.',
    'Hi, I am {name}.',
)
GREETING_REPLIES = (
    '[Hello|Hi]! I am a little storyteller. {offer}',
    '[Hello|Hello there|Hi]! It is nice to meet you. {offer}',
    'Hello! How are you today? {offer}',
    'Hello! I tell short stories. {offer}',
)
FEELING_REPLIES = ('[Hello|Hi]! I am very well, thank you. {offer}', 'I am fine, thank you! {offer}')
NAME_REPLIES = ('Hello, {name}! It is nice to meet you. {offer}', 'Hi, {name}! I am a little storyteller. {offer}')
OFFERS = (
    'Would you like to hear a story?', 'Shall I tell you a story?', 'What would you like to hear a story about?',
)
OFFER_OF_KIND = 'Would you like to hear a story about {kind}?'

SMALL_TALK = (
    (('Who are you?', 'What are you?', 'What is your name?', 'who are you', 'Are you a robot?', 'Are you real?',
      'Tell me about yourself.'),
     ('I am a little storyteller. I live in a computer and I tell short stories. {offer}',
      'I am a small computer program that tells stories. {offer}')),
    (('What can you do?', 'Help', 'help', 'How can you help me?', 'What do you do?', 'What can I ask you?'),
     ('I can tell you short stories about animals, children, robots and dragons. {offer}',
      'I tell short stories. You can say, "Tell me a story about {kind}." {offer}')),
    (('How are you?', 'How are you today?', 'how are you', 'Are you happy?'),
     ('I am very well, thank you! {offer}', 'I am happy, because I like to tell stories. {offer}')),
    (('Good night.', 'Good night!', 'I am tired.', 'I want to sleep.'),
     ('Good night! Sleep well and dream of [friendly dragons|the stars|a quiet forest|a little boat].',
      'Good night! May you have sweet dreams.')),
    (('Goodbye!', 'Bye', 'Bye!', 'See you later.', 'Goodbye'),
     ('Goodbye! Come back soon for another story.', 'See you soon! I will keep a story for you.')),
    (('I am sad.', 'I am bored.', 'I had a bad day.', 'I feel lonely.'),
     ('I am sorry to hear that. A story may help. {offer}', 'Oh dear. Maybe I can make you smile. {offer}')),
    (('Thank you!', 'Thanks!', 'Thank you', 'thanks', 'You are nice.', 'I like you.', 'I like your stories.'),
     ('You are welcome! {offer}', 'Thank you, you are very kind. {offer}')),
    (('I have {kind}.', 'I like {kind}.', 'I saw {kind} today.', 'I went to school today.', 'It is my birthday.',
      'It is raining.', 'I am happy.', 'I had a good day.', 'I am hungry.'),
     ('That is nice to hear. {offer}', 'How interesting! {offer}', 'I see. {offer}')),
    (('What is your favorite story?', 'What is your favorite animal?', 'Do you like animals?'),
     ('I like stories about {kind}. {offer}', 'My favorite is the story about {kind}. {offer}')),
)  # fmt: skip

# A storyteller knows only stories, and it is better to say so than to invent an answer.
QUESTIONS = (
    'What is the capital of {country}?', 'Where is {country}?', 'What is {n} + {m}?', 'What is {n} times {m}?',
    'How much is {n} minus {m}?', 'What is the weather like [today|tomorrow]?', 'What time is it?',
    'Write a [program|function] in {language}.', 'How do I learn {language}?', 'What is {subject}?',
    'Explain {subject}.', 'Can you explain {subject} to me?', 'Tell me about {subject}.', 'How does {subject} work?',
    'Who was the first king of {country}?', 'Can you help me with [my homework|my work|math]?',
    'Write [a poem|an email|a song|a letter].', 'Tell me a joke.', 'Why is the sky blue?', 'How old are you?',
    'Translate this into [French|German|Spanish].', 'What should I eat today?', 'What is the meaning of life?',
    'Who is the president of {country}?', 'How many people live in {country}?', 'Give me a list of {subject} books.',
)
SLOTS = {
    'country': ('France', 'Germany', 'Spain', 'Italy', 'China', 'Japan', 'India', 'Brazil', 'Canada', 'Egypt',
                'Kenya', 'Mexico', 'America', 'England', 'Poland', 'Norway'),
    'language': ('Python', 'JavaScript', 'Java', 'C', 'English', 'French'),
    'subject': ('science', 'history', 'music', 'the internet', 'physics', 'a computer', 'electricity', 'gravity',
                'mathematics', 'money', 'a neural network', 'the economy', 'football', 'space'),
}  # fmt: skip
QUESTION_REPLIES = (
    'I do not know that. I am only a little storyteller. {offer}',
    'I am sorry, but I can only tell stories. {offer}',
    'That is a hard question for a little storyteller. I only know stories. {offer}',
    'I cannot help with that, but I know many stories. {offer}',
)

REQUESTS = (
    'Tell me a [|short |little |bedtime |nice ]story about {subject}.',
    'Tell me a story about {subject}.',
    'Tell me a story about {subject}, please.',
    'Please tell me a [|short |little ]story about {subject}.',
    'Can you tell me a [|short |little ]story about {subject}?',
    'Could you tell me a story about {subject}, please?',
    'Write a [|short |little ]story about {subject}.',
    'Please write a [|short |little ]story about {subject}.',
    'I [want|would like] to hear a [|short |nice ]story about {subject}.',
    'Do you know a story about {subject}?',
    'I want a story about {subject}.',
    'A story about {subject}, please.',
    'tell me a story about {subject}',
    'write a story about {subject}',
)
OPEN_REQUESTS = (
    'Tell me a story.', 'Tell me a story', 'tell me a story', 'Please tell me a story.', 'Tell me a [short|nice|little|'
    'bedtime] story.', 'Can you tell me a story?', 'I want to hear a story.', 'A story, please.', 'Write a story.',
    'Write a short story.', 'Surprise me!',
)
PREFACES = (
    '[Of course|Sure|Yes, of course]! Here is a story about {subject}.\n\n',
    'Here is a [little |short |]story about {subject}.\n\n',
)
YES = ('Yes', 'Yes!', 'Yes, please.', 'Yes please', 'yes', 'Sure!', 'Of course!', 'I would love to.', 'OK', 'Please do.')
ANOTHER = ('Another one, please.', 'Tell me another story.', 'Another story, please.', 'One more!', 'One more story, please.')
THANKS = ('Thank you!', 'Thanks!', 'Thank you.', 'That was nice.', 'I liked it.', 'What a nice story!', 'thank you')
THANKS_REPLIES = (
    'You are welcome! {offer}', 'I am glad that you liked it! {offer}', 'You are welcome! Come back soon for another story.',
)  # fmt: skip


def subject_of(rng: random.Random, told: Story) -> str:
    """What a request for this very story would name: its hero, its place, what it is about."""
    hero, friend, place, topic = told.hero, told.friend, told.place, rng.choice(told.plot.topics)
    who = rng.choice([hero.plain] * 5 + [hero.a] * 3 + [hero.intro, hero.full])
    forms = [who] * 3 + [f'{who} {place.at}'] * 3 + [f'{who} {told.who}'] * 4 + [topic, f'{who} and {topic}']
    forms.append(f'{who} {place.preposition} {with_article(place.noun)}')
    if re.search(rf'\b{friend.kind.noun}\b', told.text) and friend.kind != hero.kind:
        forms += [f'{who} and {friend.plain}'] * 2
    if friend.name in told.text:
        forms.append(f'{hero.name} and {friend.name}')
    if re.search(rf'\b{told.thing.full}\b', told.text):
        forms += [f'{who} and {told.thing.a}', told.thing.a]
    return rng.choice(forms)


def offer(rng: random.Random) -> str:
    kind = rng.choices(KINDS, [kind.weight for kind in KINDS])[0]
    return rng.choice(OFFERS) if rng.random() < 0.7 else expand(rng, OFFER_OF_KIND, {'kind': with_article(kind.noun)})


def reply(rng: random.Random, alternatives: tuple[str, ...], **fields: str) -> str:
    kind = with_article(rng.choice(KINDS).noun)
    return expand(rng, rng.choice(alternatives), {'offer': offer(rng), 'kind': kind, **fields})


def turn(user: str, assistant: str) -> list[Message]:
    return [{'role': 'user', 'content': user}, {'role': 'assistant', 'content': assistant}]


def greeting(rng: random.Random, told: Story) -> list[Message]:
    user = expand(rng, rng.choice(GREETINGS), {'name': told.hero.name})
    if 'how are you' in user:
        return turn(user, reply(rng, FEELING_REPLIES))
    if told.hero.name in user:
        return turn(user, reply(rng, NAME_REPLIES, name=told.hero.name))
    return turn(user, reply(rng, GREETING_REPLIES))


def small_talk(rng: random.Random) -> list[Message]:
    questions, replies = rng.choice(SMALL_TALK)
    return turn(reply(rng, questions), reply(rng, replies))


def question(rng: random.Random) -> list[Message]:
    slots = {name: rng.choice(values) for name, values in SLOTS.items()}
    numbers = {'n': str(rng.randint(1, 99)), 'm': str(rng.randint(1, 99))}
    return turn(expand(rng, rng.choice(QUESTIONS), slots | numbers), reply(rng, QUESTION_REPLIES))


def story_request(rng: random.Random, told: Story) -> list[Message]:
    if rng.random() < 0.15:
        return turn(expand(rng, rng.choice(OPEN_REQUESTS), {}), told.text)
    subject = subject_of(rng, told)
    preface = expand(rng, rng.choice(PREFACES), {'subject': subject}) if rng.random() < 0.15 else ''
    return turn(expand(rng, rng.choice(REQUESTS), {'subject': subject}), preface + told.text)


def accepted_offer(rng: random.Random, told: Story) -> list[Message]:
    """The assistant offers a story about the hero's kind, the user says yes and hears it."""
    offered = expand(rng, OFFER_OF_KIND, {'kind': told.hero.plain})
    user = rng.choice([g for g in GREETINGS if '{' not in g and 'how' not in g])
    return turn(user, expand(rng, rng.choice(GREETING_REPLIES), {'offer': offered})) + turn(rng.choice(YES), told.text)


def conversation(rng: random.Random) -> list[Message]:
    messages: list[Message] = []
    if rng.random() < 0.2:
        messages.append({'role': 'system', 'content': rng.choice(SYSTEM)})
    told = story(rng)
    opening = rng.random()
    if opening < 0.16:
        messages += greeting(rng, told)
    elif opening < 0.26:
        messages += small_talk(rng)
    elif opening < 0.34:
        messages += question(rng)
    elif opening < 0.42:
        return messages + accepted_offer(rng, told)
    if opening > 0.42 or rng.random() < 0.4:
        messages += story_request(rng, told)
        after = rng.random()
        if after < 0.1:
            messages += turn(rng.choice(THANKS), reply(rng, THANKS_REPLIES))
        elif after < 0.25:
            other = story(rng)
            messages += turn(rng.choice(ANOTHER), other.text) if after < 0.18 else story_request(rng, other)
    return messages
