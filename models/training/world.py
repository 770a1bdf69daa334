"""Who and what the stories are about: characters, places, things and food.

Everything here knows how to name itself in a sentence, so that a plot can say
`{hero.the}` or `{place.at}` and the pronouns and names stay right through a story.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PRONOUNS = {
    'he': dict(he='he', him='him', his='his', himself='himself'),
    'she': dict(he='she', him='her', his='her', himself='herself'),
}


def with_article(phrase: str) -> str:
    """'old owl' -> 'an old owl'; the first letter decides, but for the sound of 'unicorn'."""
    vowel = phrase[0] in 'aeiou' and not phrase.startswith('uni')
    return f'an {phrase}' if vowel else f'a {phrase}'


@dataclass(frozen=True)
class Kind:
    """A sort of hero: what it is called, where it sleeps, how often it appears."""

    noun: str
    group: str  # 'child', 'animal' or 'wonder' (robots, dragons, knights ...)
    dwelling: str
    weight: int = 1
    pronoun: str | None = None  # fixed for 'boy' and 'queen', free for 'fox'
    eats: bool = True


@dataclass(frozen=True)
class Character:
    name: str
    kind: Kind
    adjective: str
    pronoun: str

    def __str__(self) -> str:
        return self.name

    def __getattr__(self, attribute: str) -> str:
        # he, him, his, himself; only called for attributes the class does not have.
        try:
            return PRONOUNS[self.pronoun][attribute]
        except KeyError:
            raise AttributeError(attribute) from None

    @property
    def a(self) -> str:
        """'a little fox'"""
        return with_article(f'{self.adjective} {self.kind.noun}')

    @property
    def the(self) -> str:
        """'the little fox'"""
        return f'the {self.adjective} {self.kind.noun}'

    @property
    def plain(self) -> str:
        """'a fox'"""
        return with_article(self.kind.noun)

    @property
    def intro(self) -> str:
        """'a fox named Milo', for a character who enters in the middle of a story."""
        return f'{self.plain} named {self.name}'

    @property
    def full(self) -> str:
        """'Milo the fox'; a child is just 'Tom'."""
        return self.name if self.kind.group == 'child' else f'{self.name} the {self.kind.noun}'


@dataclass(frozen=True)
class Elder:
    """A grown-up who gives help or advice; `a` at the first mention, `the` afterwards."""

    a: str
    the: str
    pronoun: str

    def __getattr__(self, attribute: str) -> str:
        try:
            return PRONOUNS[self.pronoun][attribute]
        except KeyError:
            raise AttributeError(attribute) from None


@dataclass(frozen=True)
class Place:
    noun: str
    preposition: str
    adjectives: tuple[str, ...]
    spots: tuple[str, ...]  # where something can be lost, hidden or found
    groups: tuple[str, ...] = ('child', 'animal', 'wonder')  # who is found here
    wild: bool = False  # only animals live in it, everyone else near it

    def __str__(self) -> str:
        return self.noun

    @property
    def the(self) -> str:
        return f'the {self.noun}'

    @property
    def at(self) -> str:
        """'in the forest'"""
        return f'{self.preposition} the {self.noun}'

    @property
    def to(self) -> str:
        return f'to the {self.noun}'


@dataclass(frozen=True)
class Thing:
    noun: str
    adjectives: tuple[str, ...]
    use: str  # what one loves to do with it: 'fly it in the wind'
    adjective: str = ''

    def __str__(self) -> str:
        return self.noun

    @property
    def full(self) -> str:
        return f'{self.adjective} {self.noun}'

    @property
    def a(self) -> str:
        return with_article(self.full)


@dataclass(frozen=True)
class Food:
    a: str  # 'a basket of apples'
    some: str  # 'some apples', what one gives away of it
    the: str  # 'the apples'
    smell: str = 'sweet'


BOYS = (
    'Tom Ben Sam Max Leo Jack Finn Noah Oscar Theo Hugo Henry Adam Luke Milo Toby Bruno Gus '
    'Felix Charlie Pip Rusty'
).split()
GIRLS = (
    'Lily Mia Anna Sara Emma Zoe Nora Ruby Ella Rosa Maya Lucy Daisy Bella Luna Poppy Rosie '
    'Molly Tilly Hazel Amy Kate'
).split()
SPECIAL_NAMES = {
    'robot': (('Bolt', 'he'), ('Beep', 'he'), ('Chip', 'he'), ('Zip', 'he'), ('Dot', 'she'), ('Pixel', 'she')),
    'dragon': (('Blaze', 'he'), ('Puff', 'he'), ('Spark', 'he'), ('Ember', 'she'), ('Ruby', 'she')),
    'fairy': (('Twinkle', 'she'), ('Dew', 'she'), ('Petal', 'she')),
}

ADJECTIVES = (
    'little little little little young small kind cheerful brave curious clever shy gentle quiet '
    'happy funny friendly'
).split()

KINDS = (
    Kind('boy', 'child', 'house', 26, 'he'),
    Kind('girl', 'child', 'house', 26, 'she'),
    Kind('fox', 'animal', 'den', 7),
    Kind('rabbit', 'animal', 'burrow', 7),
    Kind('bear', 'animal', 'cave', 7),
    Kind('mouse', 'animal', 'house', 7),
    Kind('cat', 'animal', 'house', 6),
    Kind('dog', 'animal', 'house', 6),
    Kind('duck', 'animal', 'house', 5),
    Kind('frog', 'animal', 'house', 5),
    Kind('owl', 'animal', 'hollow tree', 4),
    Kind('bird', 'animal', 'tree house', 5),
    Kind('squirrel', 'animal', 'hollow tree', 5),
    Kind('hedgehog', 'animal', 'den', 4),
    Kind('turtle', 'animal', 'house', 4),
    Kind('elephant', 'animal', 'home', 4),
    Kind('lion', 'animal', 'den', 4),
    Kind('monkey', 'animal', 'tree house', 4),
    Kind('pig', 'animal', 'barn', 4),
    Kind('penguin', 'animal', 'hut', 4),
    Kind('sheep', 'animal', 'barn', 2),
    Kind('goat', 'animal', 'barn', 2),
    Kind('horse', 'animal', 'barn', 3),
    Kind('cow', 'animal', 'barn', 2),
    Kind('chicken', 'animal', 'barn', 2),
    Kind('deer', 'animal', 'home', 2),
    Kind('mole', 'animal', 'burrow', 2),
    Kind('beaver', 'animal', 'hut', 2),
    Kind('otter', 'animal', 'den', 2),
    Kind('badger', 'animal', 'burrow', 2),
    Kind('wolf', 'animal', 'den', 3),
    Kind('tiger', 'animal', 'den', 3),
    Kind('panda', 'animal', 'cave', 2),
    Kind('giraffe', 'animal', 'home', 2),
    Kind('zebra', 'animal', 'home', 2),
    Kind('camel', 'animal', 'home', 1),
    Kind('koala', 'animal', 'home', 2),
    Kind('kangaroo', 'animal', 'home', 2),
    Kind('kitten', 'animal', 'house', 4),
    Kind('puppy', 'animal', 'house', 4),
    Kind('robot', 'wonder', 'workshop', 12, eats=False),
    Kind('dragon', 'wonder', 'cave', 11),
    Kind('princess', 'wonder', 'castle', 6, 'she'),
    Kind('prince', 'wonder', 'castle', 4, 'he'),
    Kind('knight', 'wonder', 'tower', 5),
    Kind('giant', 'wonder', 'house', 4),
    Kind('fairy', 'wonder', 'tree house', 4, 'she'),
    Kind('wizard', 'wonder', 'tower', 5, 'he'),
    Kind('pirate', 'wonder', 'hut', 4),
    Kind('unicorn', 'wonder', 'barn', 4),
)

PLACES = (
    Place('forest', 'in', ('green', 'quiet', 'big', 'dark'),
          ('under an old oak tree', 'behind a big rock', 'in a pile of leaves', 'beside the stream',
           'next to a hollow log', 'under a bush')),
    Place('garden', 'in', ('pretty', 'sunny', 'small'),
          ('under the rose bush', 'behind the shed', 'next to the fence', 'under the apple tree',
           'beside the little pond', 'between the flowers'), wild=True),
    Place('park', 'in', ('big', 'sunny', 'green'),
          ('under the bench', 'behind the swings', 'next to the fountain', 'beside the pond',
           'under a tall tree', 'in the long grass'), ('child', 'animal'), wild=True),
    Place('village', 'in', ('small', 'quiet', 'friendly'),
          ('behind the bakery', 'next to the old well', 'under the bridge', 'beside the school',
           'behind the little shop', 'near the clock tower')),
    Place('town', 'in', ('busy', 'small', 'old'),
          ('behind the library', 'next to the market', 'under the bridge', 'beside the school',
           'near the train station', 'in front of the toy shop'), ('child', 'wonder')),
    Place('farm', 'on', ('big', 'busy', 'small'),
          ('behind the red barn', 'in the hay', 'next to the gate', 'under the old wagon',
           'beside the duck pond', 'in the corn field'), ('child', 'animal')),
    Place('beach', 'on', ('sandy', 'long', 'sunny'),
          ('behind a big rock', 'under an old boat', 'in the sand', 'near the palm tree',
           'beside a tide pool', 'next to a pile of shells')),
    Place('mountain', 'on', ('tall', 'snowy', 'high'),
          ('behind a big rock', 'in a small cave', 'under a pine tree', 'beside the waterfall',
           'in the soft snow', 'next to the stone bridge')),
    Place('meadow', 'in', ('wide', 'sunny', 'green'),
          ('in the tall grass', 'behind a big rock', 'under the willow tree', 'beside the stream',
           'between the flowers', 'next to an old fence')),
    Place('lake', 'by', ('blue', 'quiet', 'deep'),
          ('under the wooden dock', 'behind a big rock', 'next to an old boat', 'under the willow tree',
           'in the reeds', 'near the tall grass')),
    Place('river', 'by', ('wide', 'cool', 'long'),
          ('under the stone bridge', 'behind a big rock', 'in the reeds', 'next to the water wheel',
           'under the willow tree', 'in the soft mud')),
    Place('hill', 'on', ('green', 'tall', 'windy'),
          ('behind the windmill', 'in the tall grass', 'under the old oak tree', 'beside the stone wall',
           'next to a big rock', 'under a bush')),
    Place('jungle', 'in', ('warm', 'green', 'big'),
          ('behind a waterfall', 'under a giant leaf', 'in a hollow tree', 'beside the river',
           'next to a big rock', 'between the vines'), ('animal', 'wonder')),
    Place('valley', 'in', ('green', 'quiet', 'hidden'),
          ('beside the stream', 'behind a big rock', 'under the old oak tree', 'in a small cave',
           'next to the stone bridge', 'in the tall grass')),
    Place('island', 'on', ('small', 'sunny', 'faraway'),
          ('under a palm tree', 'in the sand', 'behind a big rock', 'inside an old boat',
           'in a small cave', 'beside a tide pool')),
    Place('castle', 'in', ('big', 'old', 'stone'),
          ('behind the throne', 'under the long table', 'in the tall tower', 'in the kitchen',
           'next to the well', 'behind the curtains'), ('wonder',)),
)

THINGS = (
    Thing('ball', ('red', 'blue', 'yellow', 'big'), 'play with it'),
    Thing('kite', ('red', 'green', 'yellow', 'blue'), 'fly it in the wind'),
    Thing('drum', ('little', 'red', 'loud'), 'play it'),
    Thing('boat', ('wooden', 'little', 'blue'), 'sail it on the water'),
    Thing('scarf', ('warm', 'red', 'soft', 'long'), 'wear it'),
    Thing('book', ('big', 'old', 'blue'), 'read it'),
    Thing('bell', ('silver', 'golden', 'little'), 'ring it'),
    Thing('lantern', ('little', 'golden', 'old'), 'carry it'),
    Thing('blanket', ('soft', 'blue', 'warm'), 'sit on it'),
    Thing('hat', ('green', 'red', 'funny', 'tall'), 'wear it'),
    Thing('flute', ('wooden', 'silver', 'little'), 'play it'),
    Thing('toy car', ('red', 'blue', 'fast'), 'race it'),
    Thing('music box', ('golden', 'old', 'little'), 'listen to it'),
    Thing('teddy bear', ('brown', 'soft', 'little'), 'hug it'),
    Thing('whistle', ('silver', 'red', 'little'), 'blow it'),
    Thing('puppet', ('wooden', 'funny', 'little'), 'play with it'),
    Thing('wagon', ('red', 'little', 'wooden'), 'pull it'),
    Thing('umbrella', ('yellow', 'red', 'big'), 'open it'),
    Thing('crown', ('golden', 'paper', 'silver'), 'wear it'),
    Thing('map', ('old', 'big', 'blue'), 'look at it'),
)

FOODS = (
    Food('a basket of apples', 'some apples', 'the apples'),
    Food('a bag of nuts', 'some nuts', 'the nuts', 'good'),
    Food('a loaf of warm bread', 'some bread', 'the bread', 'good'),
    Food('a berry pie', 'some pie', 'the pie'),
    Food('a bowl of berries', 'some berries', 'the berries'),
    Food('a plate of cookies', 'some cookies', 'the cookies'),
    Food('a chocolate cake', 'some cake', 'the cake'),
    Food('a pot of soup', 'some soup', 'the soup', 'good'),
    Food('a jar of honey', 'some honey', 'the honey'),
    Food('a bunch of carrots', 'some carrots', 'the carrots', 'fresh'),
    Food('a basket of pears', 'some pears', 'the pears'),
    Food('a stack of pancakes', 'some pancakes', 'the pancakes', 'good'),
)

WISE = (
    Elder('a wise old owl', 'the wise old owl', 'she'),
    Elder('an old turtle', 'the old turtle', 'he'),
    Elder('a kind old farmer', 'the old farmer', 'he'),
    Elder('a friendly baker', 'the baker', 'she'),
    Elder('an old gardener', 'the old gardener', 'he'),
    Elder('a gray goose', 'the gray goose', 'she'),
    Elder('an old bear', 'the old bear', 'he'),
    Elder('a kind teacher', 'the teacher', 'she'),
)


def choose_character(rng: random.Random, kind: Kind, taken: tuple[str, ...] = ()) -> Character:
    pronoun = kind.pronoun or rng.choice(('he', 'she'))
    names = [name for name, gender in SPECIAL_NAMES.get(kind.noun, ()) if gender == pronoun]
    if not names or rng.random() < 0.4:
        names = BOYS if pronoun == 'he' else GIRLS
    name = rng.choice([n for n in names if n not in taken] or BOYS)
    return Character(name, kind, rng.choice(ADJECTIVES), pronoun)


def choose_hero(rng: random.Random) -> Character:
    return choose_character(rng, rng.choices(KINDS, [kind.weight for kind in KINDS])[0])


def choose_friend(rng: random.Random, hero: Character) -> Character:
    """Children play with children, animals with animals, most of the time; wonders with anyone."""
    same_group = hero.kind.group != 'wonder' and rng.random() < 0.85
    kinds = [
        kind for kind in KINDS
        if (kind.group == hero.kind.group if same_group else kind.group != 'wonder')
        and (kind.group == 'child' or kind.noun != hero.kind.noun)
    ]
    kind = rng.choices(kinds, [kind.weight for kind in kinds])[0]
    return choose_character(rng, kind, taken=(hero.name,))


def choose_parent(rng: random.Random, hero: Character) -> Elder:
    """The grown-up at home: family for children and animals, a mentor for everyone else."""
    if hero.kind.group == 'wonder':
        if hero.kind.noun == 'robot':
            return Elder('the old inventor', 'the old inventor', rng.choice(('he', 'she')))
        return rng.choice((Elder('the old teacher', 'the old teacher', 'she'),
                           Elder('the old gardener', 'the old gardener', 'he')))
    noun, pronoun = rng.choice((('mother', 'she'), ('father', 'he'), ('mother', 'she'),
                                ('grandmother', 'she'), ('grandfather', 'he')))
    return Elder(f'{hero.his} {noun}', f'{hero.his} {noun}', pronoun)


def choose_place(rng: random.Random, hero: Character) -> Place:
    return rng.choice([place for place in PLACES if hero.kind.group in place.groups])


def choose_thing(rng: random.Random) -> Thing:
    thing = rng.choice(THINGS)
    return Thing(thing.noun, thing.adjectives, thing.use, rng.choice(thing.adjectives))
