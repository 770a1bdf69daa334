"""The grammar of a story: how openings, a plot's beats and endings become a text.

A story draws a plot (plots.py) and its cast (world.py), then takes one alternative of every beat and
fills in the names. `story(rng)` also says who and what it is about, which is what the requests in
conversations.py ask for.
"""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass

from plots import PARAGRAPH, PLOTS, Plot
from world import (
    FOODS,
    WISE,
    Character,
    Place,
    Thing,
    choose_friend,
    choose_hero,
    choose_parent,
    choose_place,
    choose_thing,
    with_article,
)

# A story begins with who lives where, and its plot follows with 'One day, ...';
OPENINGS = (
    'Once upon a time, there was {hero.a} named {hero} who lived {home}.',
    'Once upon a time, there was {hero.a} named {hero} who lived {home}.',
    'Once upon a time, there was {hero.a} named {hero}. {He} lived {home}.',
    'Once upon a time, {hero.a} [named|called] {hero} lived {home}.',
    'Once upon a time, {home}, there lived {hero.a} named {hero}.',
    'There once was {hero.a} [named|called] {hero}. {He} lived {home}.',
    '[Long ago|A long time ago], {hero.a} [named|called] {hero} lived {home}.',
    '{hero} was {hero.a} who lived {home}.',
    '{hero.full} lived {home}.',
    '{hero.the!u} was [called|named] {hero}. {He} lived {home}.',
    '{hero.the!u} lived {home}. {His} name was {hero}.',
    '{home!u}, there lived {hero.a} [named|called] {hero}.',
    '{hero.a!u} [named|called] {hero} lived {home}.',
)
# or it begins in the middle of a day, and its plot follows with 'Soon, ...'.
DAY_OPENINGS = (
    'One [sunny|warm|windy|quiet|fine] [morning|day|afternoon], {hero.a} named {hero} [was walking|was '
    'playing|was out for a walk] {place.at}.',
    'One day, {hero.a} [named|called] {hero} [was walking|was playing|was out for a walk] {place.at}.',
    'One day, {hero.full} [was walking|was playing|was out for a walk] {place.at}.',
    'It was a [sunny|warm|windy|quiet|fine] [morning|day|afternoon] {place.at}. {hero.a!u} named {hero} was '
    'out for a walk.',
    'The sun was shining {place.at}. {hero.the!u}, whose name was {hero}, was out for a walk.',
    '{hero.the!u} woke up early one morning. {His} name was {hero}, and {he} lived {home}.',
    '{hero} woke up early one morning. {He} was {hero.a} who lived {home}.',
    '{hero} was playing {place.at} one [morning|day|afternoon]. {He} was {hero.a}.',
)
HABITS = (
    '{He} loved to {hobby}.',
    '{He} liked to {hobby} and to {hobby2}.',
    'Every day, {he} liked to {hobby}.',
    'Most of all, {he} loved to {hobby}.',
    'Everyone liked {hero} because {he} was so [kind|funny|friendly|cheerful].',
    '{hero} was known for {his} [kind heart|big smile|funny jokes|many questions].',
)
HOBBIES = (
    'sing', 'draw pictures', 'count the clouds', 'look for shiny stones', 'tell jokes', 'dance in the rain',
    'watch the stars', 'climb trees', 'run in the grass', 'listen to the birds', 'pick flowers',
    'make up songs', 'jump in puddles', 'help others', 'ask questions', 'sit in the sun',
)
ENDINGS = (
    'That night, {hero} fell asleep with a smile on {his} face.',
    '{hero} went home with a happy heart.',
    'It was a day that {hero} would never forget.',
    'And they all lived happily ever after.',
    'The end.',
)
FRIEND_ENDINGS = (
    '{hero} and {friend} stayed friends forever.',
    'And so {hero} and {friend} were happy.',
    'From that day on, {hero} and {friend} were always there for each other.',
)


class Noun(str):
    """A fact of a plot, with its articles: {work}, {work.a}, {work.the}."""

    @property
    def a(self) -> str:
        return with_article(self)

    @property
    def the(self) -> str:
        return f'the {self}'


class SentenceFormatter(string.Formatter):
    """str.format with one conversion of its own: {field!u} starts with a capital."""

    def convert_field(self, value, conversion):
        if conversion == 'u':
            text = str(value)
            return text[0].upper() + text[1:]
        return super().convert_field(value, conversion)


FORMATTER = SentenceFormatter()


def expand(rng: random.Random, sentence: str, fields: dict[str, object]) -> str:
    """Makes the [choices|of] a sentence, then fills in its {fields}."""
    chosen = re.sub(r'\[([^\]]*)\]', lambda match: rng.choice(match[1].split('|')), sentence)
    return FORMATTER.vformat(chosen, (), fields)


@dataclass(frozen=True)
class Story:
    text: str
    plot: Plot
    who: str  # 'who lost his kite'
    hero: Character
    friend: Character
    place: Place
    thing: Thing


def home_of(rng: random.Random, hero: Character, place: Place) -> str:
    """'in a quiet forest', 'in the forest' or 'in a cozy den in the forest'"""
    dwelling = f'in a {rng.choice(("small", "cozy", "little"))} {hero.kind.dwelling}'
    if place.wild and hero.kind.group != 'animal':
        return f'{dwelling} near {place.the}'
    form = rng.random()
    if form < 0.3 and place.noun != 'castle':
        return f'{dwelling} {place.at}'
    if form < 0.6:
        return place.at
    return f'{place.preposition} {with_article(f"{rng.choice(place.adjectives)} {place}")}'


def story(rng: random.Random) -> Story:
    hero = choose_hero(rng)
    plot = rng.choice([plot for plot in PLOTS if hero.kind.eats or not plot.eats])
    friend = choose_friend(rng, hero)
    place = choose_place(rng, hero)
    thing = choose_thing(rng)
    spots = rng.sample(place.spots, 3)
    hobbies = rng.sample(HOBBIES, 2)
    mid_day = plot.any_day and rng.random() < 0.35

    fields: dict[str, object] = dict(
        hero=hero, he=hero.he, him=hero.him, his=hero.his, himself=hero.himself,
        He=hero.he.capitalize(), His=hero.his.capitalize(),
        friend=friend, elder=rng.choice(WISE), parent=choose_parent(rng, hero),
        place=place, home=home_of(rng, hero, place), spot=spots[0], spot2=spots[1], spot3=spots[2],
        thing=thing, full_thing=thing.full, food=rng.choice(FOODS), hobby=hobbies[0], hobby2=hobbies[1],
    )  # fmt: skip
    if mid_day:
        fields['When'] = rng.choice(('Soon', 'After a while', 'Before long', 'A little later'))
        fields['Night'] = 'That night'
    else:
        fields['When'] = rng.choice(('One day', 'One day', 'One morning', 'One afternoon', 'One sunny day',
                                     'One windy morning'))
        fields['Night'] = rng.choice(('One night', 'One night', 'One dark night', 'Late one night'))
    facts = rng.choice(plot.facts)
    fields |= {name: Noun(expand(rng, text, fields)) for name, text in facts.items()}

    def say(alternatives) -> str:
        return expand(rng, rng.choice(alternatives), fields)

    parts = [say(DAY_OPENINGS if mid_day else OPENINGS)]
    if rng.random() < 0.5:
        parts.append(say(HABITS))
    in_paragraphs = rng.random() < 0.7
    for beat in plot.beats:
        if beat is not PARAGRAPH:
            parts.append(say(beat))
        elif in_paragraphs:
            parts.append('\n\n')
    if in_paragraphs:
        parts.append('\n\n')
    parts.append(say(plot.lessons))
    if rng.random() < 0.5:
        met = any(friend.name in part for part in parts)
        parts.append(say(ENDINGS + FRIEND_ENDINGS if met else ENDINGS))

    text = re.sub(r' ?\n\n ?', '\n\n', ' '.join(part for part in parts if part))
    return Story(text, plot, say(plot.who), hero, friend, place, thing)
