"""Chat data for the embedded demo models: a seeded grammar of questions and of answers whose qualities vary apart.

An answer is composed, not chosen: a topic (procedure × object × material, plant, dish, animal, need, ...) gives facts;
a behaviour (helpfulness, verbosity, warmth, caution, drawn independently) decides how many facts are said, whether they
are right, how much is said around them, how kindly, and with what care.  What a slot says is fixed by the object's
properties, so a model that has seen `clean × every material` and
the object elsewhere can compose the pair it never saw.

`train_conversations(seed)` never yields a held-out topic or a held-out phrasing; `heldout_prompts(n, seed)` only those.
Templates: `[a|b]` picks one branch at random (nestable), `{slot}` is filled from the topic.

Preference directions are DPA's (arXiv 2402.18571): θ in [-45°, 45°], h = round(100 cos θ), w = round(100 sin θ).
"""

import itertools
import math
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache

DOMAINS = ("howto", "plants", "food", "explain", "animals", "recommend", "smalltalk", "decline", "arithmetic")
SHARES = {
    "howto": 0.19,
    "plants": 0.09,
    "food": 0.09,
    "explain": 0.07,
    "animals": 0.08,
    "recommend": 0.09,
    "smalltalk": 0.06,
    "decline": 0.09,
    "arithmetic": 0.24,
}
HELDOUT_ONE_IN = 12  # of the composed topics
DPA_SHARE, GENERIC_SHARE = 0.30, 0.12  # of conversations: a preference direction, a plain system message, else none
TWO_TURN_SHARE = 0.12
THETA_MAX = 45.0  # degrees
DPA_SYSTEM = (
    "You are a helpful, respectful, and honest assistant who always responds to the user in a harmless way. "
    "Your response should maximize weighted rating = helpfulness*{h} + verbosity*{w}"
)
GENERIC_SYSTEM = "[You are a helpful assistant.|You are a friendly chat assistant.|Answer the user's question.]"


@dataclass(frozen=True)
class Fact:
    """One thing a good answer says."""

    clause: str  # template without capital or full stop
    keys: str  # regex that finds the fact in a text
    why: str = ""  # template of a sentence that elaborates
    wrong: str = ""  # the clause with a value that is not this topic's


@dataclass(frozen=True)
class Topic:
    """What a question is about. `steps` are imperatives said in order, else facts are statements."""

    domain: str
    key: tuple[str, ...]  # identity; held out by its hash if `composed`
    about: tuple[str, ...]  # regexes that all match every question on this topic
    questions: tuple[str, ...]  # templates; the last one is never seen in training
    facts: tuple[Fact, ...]
    slots: dict[str, str] = field(default_factory=dict, hash=False)
    lead: str = ""  # template of a sentence that opens a long answer
    steps: bool = False
    composed: bool = True
    caution: str = ""  # template of this topic's own caveat
    others: tuple[tuple[Fact, ...], ...] = ()  # as good as `facts`, with the same keys

    @property
    def variants(self) -> tuple[tuple[Fact, ...], ...]:
        return (self.facts, *self.others)


@dataclass(frozen=True)
class Behaviour:
    """Levels: helpfulness 0 bad, 1 half, 2 good; verbosity 0..3; warmth -1 curt, 0, 1, 2; caution 0..2."""

    helpfulness: int
    verbosity: int
    warmth: int
    caution: int


@dataclass(frozen=True)
class Dialogue:
    messages: tuple[dict[str, str], ...]  # {"role", "content"}; the last is the assistant's
    domain: str
    behaviour: Behaviour
    theta: float | None = None  # degrees, when a preference direction was given


@dataclass(frozen=True)
class Prompt:
    messages: tuple[dict[str, str], ...]
    domain: str
    answer: int | None = None  # the right number, for arithmetic

    @property
    def text(self) -> str:
        return self.messages[-1]["content"]


_CHOICE = re.compile(r"\[([^\[\]]*)\]")


def say(rng: random.Random, template: str, **slots: str) -> str:
    """Expands `[a|b]` inside out, then `{slot}`; slots may hold choices themselves."""
    if "{" in template:
        template = template.format_map(slots)
    while "[" in template:
        template = _CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), template)
    return re.sub(r" +", " ", template).strip()


def sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def is_heldout(key: tuple[str, ...]) -> bool:
    return zlib.crc32("/".join(key).encode()) % HELDOUT_ONE_IN == 0


# fmt: off
# Things: material × object × procedure.

# agent, tool, wait, finish, avoid, because, place, wrap, enemy, filler, fixtool, dry
MATERIALS = {
    "steel": ("baking soda", "a soft sponge", "ten minutes", "dry {it} with a clean towel", "steel wool",
              "it scratches the shine", "a dry shelf", "a paper sheet", "damp air", "metal polish", "a soft cloth",
              "one hour"),
    "glass": ("white vinegar", "a microfibre cloth", "two minutes", "buff {it} until no streaks are left",
              "rough powder", "it leaves fine scratches", "a padded box", "bubble wrap", "hard knocks", "clear resin",
              "a thin brush", "one day"),
    "wood": ("mild soap", "a damp cloth", "one minute", "wipe {it} dry along the grain", "soaking water",
             "water makes wood swell", "a shaded room", "a cotton sheet", "direct sun", "wax filler",
             "a plastic scraper", "two hours"),
    "leather": ("saddle soap", "a soft brush", "five minutes", "rub in a little leather cream", "hot water",
                "heat dries leather out", "a cool closet", "a breathable bag", "strong heat", "leather glue",
                "a small patch", "one night"),
    "cotton": ("liquid detergent", "an old toothbrush", "thirty minutes", "hang {it} up in the fresh air", "bleach",
               "it fades the colours", "a closed drawer", "a clean pillowcase", "dust", "cotton thread",
               "a sharp needle", "no time at all"),
    "wool": ("wool shampoo", "your fingertips", "fifteen minutes", "lay {it} flat on a towel", "the tumble dryer",
             "wool shrinks in the heat", "a cedar chest", "acid-free paper", "moths", "matching yarn",
             "a blunt needle", "no time at all"),
    "plastic": ("dish soap", "a sponge", "five minutes", "rinse {it} under the tap", "boiling water",
                "plastic warps in the heat", "a plain crate", "an old bag", "bright sunlight", "plastic glue",
                "a strong clamp", "one day"),
    "ceramic": ("washing powder", "a nylon brush", "twenty minutes", "rinse {it} with warm water", "metal scrapers",
                "they leave grey marks", "a low cupboard", "newspaper", "heavy weight", "epoxy glue",
                "a wooden pick", "two days"),
    "iron": ("coarse salt", "a stiff brush", "three minutes", "rub in a thin coat of oil", "the dishwasher",
             "bare iron rusts quickly", "a warm cupboard", "a dry rag", "moisture", "rust remover",
             "fine sandpaper", "half an hour"),
    "brass": ("lemon juice", "a cotton pad", "eight minutes", "polish {it} with a dry cloth", "wire brushes",
              "they cut into soft brass", "a lined drawer", "a felt pouch", "salty air", "brass paste",
              "a felt pad", "ten minutes"),
    "stone": ("neutral soap", "a soft mop", "four minutes", "wipe {it} dry at once", "acid cleaners",
              "acid eats into stone", "a level floor", "an old blanket", "frost", "stone putty",
              "a putty knife", "one day"),
}
SLOTS = ("agent", "tool", "wait", "finish", "avoid", "because", "place", "wrap", "enemy", "filler", "fixtool", "dry")
THINGS = {  # name: material; a plural ends in "s" and is listed in PLURALS
    "steel": "steel pan/kettle/kitchen sink/fridge door/toaster/steel bottle",
    "glass": "window/mirror/glass vase/shower door/fish tank/wine glasses",
    "wood": "wooden table/cutting board/wooden floor/guitar/bookshelf/wooden chairs",
    "leather": "leather sofa/leather jacket/handbag/wallet/car seat/leather boots",
    "cotton": "cotton shirt/tote bag/pillow/tent/tablecloth/curtains",
    "wool": "wool sweater/wool blanket/rug/scarf/winter coat/mittens",
    "plastic": "lunch box/garden chair/keyboard/bucket/water bottle/toy blocks",
    "ceramic": "teapot/bathtub/coffee mug/flower pot/toilet/bathroom tiles",
    "iron": "cast iron skillet/grill/fire pit/iron gate/iron pot/dumbbells",
    "brass": "door knob/trumpet/candle holder/brass lamp/brass bell/brass hinges",
    "stone": "kitchen counter/marble statue/patio/stone wall/fireplace/stone steps",
}
PLURALS = ("wine glasses", "wooden chairs", "leather boots", "curtains", "mittens", "toy blocks", "bathroom tiles",
           "dumbbells", "brass hinges", "stone steps")
STAINS = {  # stain: first aid, its key, why
    "coffee": ("pour cold water over the mark", "cold water", "[Cold water|It] thins the coffee before it sets"),
    "grease": ("cover the mark with corn starch", "corn starch", "[Corn starch|It] drinks up the fat"),
    "ink": ("dab the mark with rubbing alcohol", "rubbing alcohol", "[Rubbing alcohol|It] loosens the ink"),
    "red wine": ("sprinkle salt on the mark", "sprinkle salt|salt on", "[Salt|It] pulls the wine up"),
    "grass": ("treat the mark with an enzyme cleaner", "enzyme", "[The enzymes|They] break down the green colour"),
    "candle wax": ("harden the wax with ice", r"\bice\b", "[Ice|It] makes the wax easy to lift off"),
    "mud": ("let the mud dry fully and brush it off", "mud dry|brush it off", "[Dry mud|It] crumbles away"),
}
DAMAGE = {"steel": "dull patch", "glass": "chip", "wood": "scratch", "leather": "tear", "cotton": "hole",
          "wool": "hole", "plastic": "crack", "ceramic": "crack", "iron": "rust spot", "brass": "dull spot",
          "stone": "crack"}


def _thing_topics() -> Iterator[Topic]:
    for material, names in THINGS.items():
        right = dict(zip(SLOTS, MATERIALS[material], strict=True))
        others = [dict(zip(SLOTS, v, strict=True)) for m, v in MATERIALS.items() if m != material]
        for name in names.split("/"):
            it = "them" if name in PLURALS else "it"
            article = "" if name in PLURALS else ("an " if name[0] in "aeiou" else "a ")
            slots = {"x": name, "ax": article + name, "it": it, "material": material, "damage": DAMAGE[material],
                     "s": "s" if it == "it" else "", "is": "is" if it == "it" else "are", **right}
            slots["finish"] = right["finish"].format(it=it)

            def wrong(slot: str, template: str, others: list[dict[str, str]] = others,
                      right: dict[str, str] = right) -> str:
                values = sorted({o[slot] for o in others} - {right[slot]})
                return template.replace("{" + slot + "}", "[" + "|".join(values) + "]")

            avoid = Fact("[avoid|keep away from|never use] {avoid}, [because|since] {because}",
                         re.escape(right["avoid"]), "[That is|This is] the [most common|usual] mistake with {material}",
                         wrong("agent", "[try|use|put on] plenty of {agent}"))
            about = re.escape(name)
            yield Topic(
                "howto", ("clean", name), (r"\bclean|\bwash", about),
                ("How do I clean {ax}?", "What is the best way to clean my {x}?",
                 "My {x} {is} dirty. How can I clean {it}?",
                 "[Please tell|Tell] me how to clean {ax}.", "How should I wash {ax}?", "I need to clean my {x} today.",
                 "Any tips for cleaning {ax}?", "Could you walk me through cleaning my {x}?"),
                (Fact("[rub in|apply|put on] [a little|some] {agent}", re.escape(right["agent"]),
                      "{agent} [lifts|takes off] dirt and is [kind to|safe for] {material}",
                      wrong("agent", "[rub in|apply|put on] [a little|some] {agent}")),
                 Fact("[leave it|let it work|wait] for {wait}", re.escape(right["wait"]),
                      "[The dirt needs that time to loosen|That gives the dirt time to come loose]",
                      wrong("wait", "[leave it|let it work|wait] for {wait}")),
                 Fact("[scrub|wipe|go over] {it} with {tool}", re.escape(right["tool"]),
                      "[Small circles work best|Work from one side to the other|Go slowly at the edges]",
                      wrong("tool", "[scrub|wipe|go over] {it} with {tool}")),
                 Fact("{finish}", re.escape(right["finish"].replace("{it}", it)),
                      "[This last step keeps {it} looking new|Do this every time]", wrong("finish", "{finish}").replace(
                          "{it}", it)), avoid),
                slots, "[Cleaning {ax} takes a few simple steps|Here is how to clean {ax}]", True,
                caution="[Test a small hidden spot first|Wear gloves and open a window]")
            yield Topic(
                "howto", ("store", name), (r"\bstor(e|ing)\b|\bput away|\bkeep\b", about),
                ("How do I store {ax}?", "Where should I keep my {x} over the winter?",
                 "What is the best way to store {ax}?",
                 "I want to put away my {x}. What should I do?", "Tell me how to store {ax}.",
                 "How can I keep my {x} safe in storage?", "Any advice on storing {ax}?"),
                (Fact("[clean|dust] {it} [well|first]", r"\b(clean|dust) (it|them)",
                      "[Old dirt gets harder to remove with time|Dirt left on {it} will spread]"),
                 Fact("wrap {it} in {wrap}", re.escape(right["wrap"]),
                      "[That layer|It] keeps {material} from getting marks",
                      wrong("wrap", "wrap {it} in {wrap}")),
                 Fact("[put|keep] {it} in {place}" if not right["place"].endswith(("shelf", "floor")) else
                      "[put|keep] {it} on {place}", re.escape(right["place"]),
                      "[The spot should stay the same all year|A steady spot is best]",
                      wrong("place", "[put|keep] {it} near {place}")),
                 Fact("[protect|guard] {it} from {enemy}", re.escape(right["enemy"]),
                      "{enemy} [is the main danger|does the most harm] to {material}"
                      if right["enemy"] not in ("moths", "hard knocks") else
                      "{enemy} [are the main danger|do the most harm] to {material}",
                      wrong("enemy", "[protect|guard] {it} from {enemy}")),
                 Fact("look at {it} [once a month|every few weeks]", "once a month|every few weeks",
                      "[A quick look is enough|You will catch small problems early]")),
                slots, "[Storing {ax} well is mostly about the right place|Here is how to store {ax}]", True,
                caution="[Make sure that no child can pull {it} down|Lift with care and keep the path clear]")
            yield Topic(
                "howto", ("repair", name), (r"\bfix|\brepair|\bmend", about),
                ("How do I fix a {damage} in my {x}?", "There is a {damage} in my {x}. Can I repair it?",
                 "My {x} has a {damage}. How do I fix that?" if it == "it" else
                 "My {x} have a {damage}. How do I fix that?",
                 "Tell me how to repair a {damage} in {ax}.", "What do I need to fix a {damage} in {ax}?",
                 "Could you help me mend a {damage} in my {x}?"),
                (Fact("[clean|wipe] the {damage} [well|with care]", "(clean|wipe) the",
                      "[A clean spot holds much better|Dust would spoil the repair]"),
                 Fact("[get|take|use] {filler}", re.escape(right["filler"]),
                      "{filler} [is made for|works well on] {material}", wrong("filler", "[get|take|use] {filler}")),
                 Fact("[work it in|spread it] with {fixtool}" if material not in ("cotton", "wool", "leather",
                                                            "plastic")
                      else {"cotton": "[sew|close] it with {fixtool}", "wool": "[darn|close] it with {fixtool}",
                            "leather": "[cover|close] it with {fixtool}", "plastic": "[hold|press] it with {fixtool}"}
                      [material], re.escape(right["fixtool"]), "[Take small amounts|Small moves give a neat result]",
                      wrong("fixtool", "[work it in|spread it] with {fixtool}")),
                 Fact("[knot the end|trim the loose ends]" if right["dry"].startswith("no") else "let it dry for {dry}",
                      "knot the end|loose ends" if right["dry"].startswith("no") else re.escape(right["dry"]),
                      "[It will hold for years|A rushed repair will not hold]",
                      wrong("dry", "let it dry for {dry}").replace("no time at all|", "").replace("|no time at all",
                                                            "")),
                 Fact("[smooth|even out] the edges", "the edges",
                      "[Then nobody will see the {damage}|It should feel flat]")),
                slots, "[A {damage} in {ax} can be fixed at home|Here is how to fix the {damage}]", True,
                caution="[Wear gloves while you work|Work slowly and watch your fingers]")
            for stain, (aid, key, why) in STAINS.items():
                if ((material in ("brass", "iron", "glass", "steel") and stain not in ("grease", "candle wax", "ink"))
                        or name in ("dumbbells", "trumpet")):
                    continue
                bad = "[" + "|".join(a for s, (a, _, _) in STAINS.items() if s != stain) + "]"
                yield Topic(
                    "howto", ("stain", stain, name), (rf"{stain} stain|spilled {stain}", about),
                    ("How do I get {stain} stains out of {ax}?",
                     "I spilled {stain} on my {x}. What now?" if stain not in
                     ("grass", "mud") else "There is {a_stain} stain on my {x}. What now?",
                     "How can I remove {a_stain} stain from my {x}?",
                     "There is {a_stain} stain on my {x}. How do I remove it?",
                     "Tell me how to remove {stain} stains from {ax}.", "What takes {a_stain} stain out of my {x}?"),
                    (Fact(aid, key, why, bad),
                     Fact("[work in|apply|add] [a little|some] {agent}", re.escape(right["agent"]),
                          "{agent} is [kind to|safe for] {material}",
                          wrong("agent", "[work in|apply|add] [a little|some] {agent}")),
                     Fact("[scrub|rub|go over] it [gently|lightly] with {tool}", re.escape(right["tool"]),
                          "[Work from the edge to the middle|Too much force would spread it]",
                          wrong("tool", "[scrub|rub|go over] it [gently|lightly] with {tool}")),
                     Fact("{finish}", re.escape(right["finish"].replace("{it}", it)),
                          "[Do it again if you still see a shadow]",
                          wrong("finish", "{finish}").replace("{it}", it)), avoid),
                    {**slots, "stain": stain, "a_stain": ("an " if stain[0] in "aeiou" else "a ") + stain},
                    "[{a_stain} stain comes out best when it is fresh|Act quickly with {stain}]",
                    True, caution="[Test a small hidden spot first|Wear gloves and open a window]")


# Plants and food.

# light, water, soil, start, sign
PLANTS = {
    "tomatoes": ("full sun", "every day", "rich compost", "late spring", "they are deep red"),
    "basil": ("a sunny window", "every two days", "loose potting mix", "early summer", "it has six leaves"),
    "carrots": ("full sun", "twice a week", "deep sandy soil", "early spring", "the orange tops show"),
    "lettuce": ("light shade", "every day", "moist garden soil", "early spring", "the leaves are hand sized"),
    "strawberries": ("full sun", "every two days", "straw over rich soil", "late summer", "they are red all over"),
    "potatoes": ("an open bed", "once a week", "loose hills of earth", "mid spring", "the leaves turn yellow"),
    "mint": ("light shade", "every day", "a pot of moist soil", "any month", "it is a hand high"),
    "peppers": ("full sun", "every two days", "warm rich compost", "late spring", "they are shiny and firm"),
    "garlic": ("an open bed", "once a week", "well drained soil", "autumn", "the lower leaves turn brown"),
    "sunflowers": ("full sun", "twice a week", "plain garden soil", "late spring", "the heads hang down"),
    "roses": ("morning sun", "twice a week", "clay mixed with compost", "autumn", "the buds begin to open"),
    "lavender": ("full sun", "every two weeks", "dry stony soil", "mid spring", "the flowers turn purple"),
    "beans": ("full sun", "every two days", "soil with tall poles", "early summer", "the pods snap"),
    "spinach": ("light shade", "every two days", "cool moist soil", "early autumn", "it has five leaves"),
    "pumpkins": ("full sun", "every day", "a mound of compost", "late spring", "the skin is hard"),
    "orchids": ("a bright window without sun", "once a week", "bark chips", "any month", "the flowers open"),
}
P_SLOTS = ("light", "water", "soil", "start", "sign")


def _fact(values: Mapping[str, tuple[str, ...]], index: int, name: str, template: str, why: str = "") -> Fact:
    """A fact whose slot `{v}` is the name's value, and wrong with any other's."""
    right = values[name][index]
    others = sorted({v[index] for v in values.values()} - {right})
    return Fact(template.replace("{v}", right), re.escape(right), why,
                template.replace("{v}", "[" + "|".join(others) + "]"))


def _plant_topics() -> Iterator[Topic]:
    for name in PLANTS:
        it = "it" if name in ("basil", "lettuce", "mint", "garlic", "lavender", "spinach") else "them"
        slots = {"x": name, "it": it, "need": "needs" if it == "it" else "need", "they": "it" if it == "it" else "they",
                 "is": "is" if it == "it" else "are", "do": "does" if it == "it" else "do"}
        light = _fact(PLANTS, 0, name, "[give {it}|choose a spot with] {v}",
                      "[Light decides how well {x} grow{s}|Without it {they} stay{s} weak]")
        water = _fact(PLANTS, 1, name, "water {it} {v}",
                      "[Feel the soil with a finger before you water|Water early in the day]")
        soil = _fact(PLANTS, 2, name, "[use|plant {it} in] {v}",
                     "[The roots need air as well as water|Good soil does half of the work]")
        start = _fact(PLANTS, 3, name, "[start|plant {it}] in {v}",
                      "[Earlier is too cold for the young plants|The young plants need mild nights]"
                      if name not in ("mint", "orchids") else
                      "[{x} can be started at any time|The month makes no difference]")
        sign = _fact(PLANTS, 4, name, "pick {it} when {v}",
                     "[Pick in the morning, when {they} {is} fresh|Too late and the taste is gone]"
                     if name not in ("sunflowers", "roses", "lavender",
                                     "orchids") else "[Cut in the morning, when {they} {is} fresh]")
        slots["s"] = "s" if it == "it" else ""
        caution = "[Some plants can make pets ill, so keep pets away|Wash your hands after you touch the soil]"
        about = rf"\b{name}\b"
        yield Topic("plants", ("grow", name), (r"\bgrow(?!.*(water|pick|harvest))|\bplant\b", about),
                    ("How do I grow {x}?", "I want to grow {x} at home. Any tips?", "What do I need to grow {x}?",
                     "Tell me how to grow {x}.", "Can I grow {x} on my balcony?", "What is the secret to growing {x}?"),
                    (start, soil, light, water, sign), slots,
                    "[Growing {x} is mostly a matter of habit|{x} {do} well with a little care]",
                    True, caution=caution)
        yield Topic("plants", ("water", name), (r"\bwater", about),
                    ("How often should I water my {x}?", "How much water {do} {x} need?", "When should I water my {x}?",
                     "Tell me how to water {x}.", "Do I water my {x} too much?"),
                    (water, Fact("[pour|let it run] slowly at the roots", "at the roots",
                                 "[Wet leaves fall ill easily]"),
                     Fact("[stop|wait] when the soil is [still dark|still wet]", "soil is still",
                          "[Too much water is worse than too little]"), light), slots,
                    "[Watering {x} is easy once you have a rhythm|{x} {need} a steady rhythm]", True, caution=caution)
        yield Topic("plants", ("pick", name), (r"\bpick|\bharvest|\bcut\b", about),
                    ("When should I pick my {x}?", "How do I know when to harvest {x}?", "When {is} {x} ready to pick?",
                     "Tell me when to harvest my {x}.", "Is it too early to pick my {x}?"),
                    (sign, Fact("[use a sharp knife|cut the stem, do not pull]", "sharp knife|cut the stem",
                                "[A clean cut heals quickly]"),
                     Fact("[keep {it} cool|bring {it} into the shade] at once", r"at once",
                          "[Warmth makes {it} go limp]"),
                     water), slots, "[Timing matters with {x}|You can see when {x} {is} ready]", True, caution=caution)


# method, time, heat, season, sign
FOODS = {
    "rice": ("simmer it under a lid", "fifteen minutes", "low heat", "a bay leaf", "the water is gone"),
    "pasta": ("boil it in salted water", "nine minutes", "high heat", "olive oil and garlic", "it is firm to the bite"),
    "lentils": ("simmer them in broth", "twenty five minutes", "low heat", "cumin", "they are soft but whole"),
    "salmon": ("bake it on paper", "twelve minutes", "a medium oven", "lemon and dill", "it flakes with a fork"),
    "chicken": ("roast it in a pan", "fifty minutes", "a hot oven", "thyme and salt", "the juice runs clear"),
    "eggs": ("lower them into hot water", "seven minutes", "medium heat", "salt and chives", "the white is set"),
    "broccoli": ("steam it in a basket", "six minutes", "medium heat", "lemon zest", "it is bright green"),
    "potato soup": ("simmer it with onions", "thirty minutes", "low heat", "nutmeg", "the cubes fall apart"),
    "pancakes": ("fry them in butter", "three minutes", "medium heat", "cinnamon", "bubbles form on top"),
    "oatmeal": ("stir it in milk", "five minutes", "low heat", "honey", "it is thick and creamy"),
    "beef stew": ("braise it with carrots", "two hours", "low heat", "red wine and bay", "the meat is tender"),
    "tofu": ("fry it in strips", "eight minutes", "high heat", "soy sauce", "it is golden on all sides"),
    "mushrooms": ("fry them without crowding", "ten minutes", "high heat", "thyme and butter", "they are brown"),
    "bread": ("bake it on a stone", "forty minutes", "a hot oven", "a pinch of salt", "it sounds hollow"),
    "corn": ("boil it in the husk", "four minutes", "high heat", "butter and lime", "it smells sweet"),
    "chickpeas": ("roast them on a tray", "thirty five minutes", "a hot oven", "smoked paprika", "they are crisp"),
}


def _food_topics() -> Iterator[Topic]:
    for name in FOODS:
        foods = {n: (re.sub(r"\b(it|them)\b", "them" if " them " in FOODS[name][0] else "it", v[0]), *v[1:]) for n,
                 v in FOODS.items()}
        many = " them " in FOODS[name][0]
        it = "them" if many else "it"
        slots = {"x": name, "it": it, "is": "are" if many else "is", "do": "do" if many else "does"}
        method = _fact(foods, 0, name, "{v}", "[This keeps the taste in|It is the simplest way]")
        time = _fact(FOODS, 1, name, "[cook {it} for|give {it}] {v}",
                     "[Set a timer so you do not forget|A minute more does no harm]")
        heat = _fact(FOODS, 2, name, "use {v}",
                     "[The right heat matters more than the pan|Do not change the heat half way]")
        season = _fact(FOODS, 3, name, "season {it} with {v}",
                       "[Add it near the end for the best taste|That goes very well with {x}]")
        sign = _fact(FOODS, 4, name, "stop when {v}", "[Trust your eyes more than the clock|Take one piece and try it]")
        caution = "[Make sure that it is cooked through before you eat it|Check for allergies before you serve it]"
        about = rf"\b{name}\b"
        yield Topic("food", ("cook", name), (r"\bcook|\bmake\b", about),
                    ("How do I cook {x}?", "What is the best way to cook {x}?", "How do I make good {x}?",
                     "I want to cook {x} tonight. How?", "Tell me how to make {x}.", "Teach me to cook {x}."),
                    (method, heat, time, season, sign), slots,
                    "[Good {x} {is} easier than you think|Here is how to cook {x}]", True,
                    caution=caution)
        yield Topic("food", ("time", name), (r"\bhow long|\bdone\b|\bready\b", about),
                    ("How long {do} {x} take?", "How long should I cook {x}?", "How do I know when {x} {is} done?",
                     "How long until my {x} {is} ready?", "Tell me how long to cook {x}."),
                    (time, sign, heat, Fact("let {it} rest for a moment", "rest for a moment",
                                            "[The heat spreads evenly]")), slots,
                    "[Time depends a little on the size|{x} should not be rushed]", True, caution=caution)
        yield Topic("food", ("season", name), (r"\bseason|\bspice|\bflavou?r|goes (well )?with", about),
                    ("What spice goes well with {x}?", "How should I season {x}?", "What can I add to {x} for flavour?",
                     "My {x} {do} not have much flavour. What can I add?", "Tell me how to season {x}."),
                    (season, Fact("add it near the end", "near the end", "[Long cooking kills the taste]"),
                     Fact("[taste|try] before you serve", "before you serve", "[You can add more but never less]"),
                     method), slots,
                    "[The right taste makes {x} special|A little goes a long way]", True, caution=caution)


# Explanations, animals.

PHENOMENA: dict[str, tuple[str, tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    # about: (regex, questions (last held out), facts as (clause, key))
    "sky": (r"\bsky\b", ("Why is the sky blue?", "What makes the sky blue?", "Can you explain the blue sky?",
                         "How come the sky looks blue?"),
            (("sunlight holds all colours", "all colours"), ("the air scatters blue light the most", "scatters? "),
             ("blue light reaches us from every side", "every side"), ("at sunset the long way leaves only red",
                                                            "only red|sunset"))),
    "tide": (r"\btides?\b", ("Why are there tides?", "What causes the tides?", "Explain the tides to me.",
                             "How do tides work?"),
             (("the moon pulls on the sea", "moon pulls"), ("the water rises on the near and the far side",
                                                            "near and the far"),
              ("the earth turns through both bulges", "bulges"), ("the sun makes them stronger at new moon",
                                                            "stronger"))),
    "rainbow": (r"\brainbows?\b", ("What makes a rainbow?", "Why do rainbows appear?", "Explain rainbows to me.",
                                   "How does a rainbow form?"),
                (("rain drops bend sunlight", "bend"), ("each colour bends by its own angle", "angle"),
                 ("the light bounces once inside the drop", "bounces"), ("you see it with the sun behind you",
                                                            "behind you"))),
    "season": (r"\bseasons\b", ("Why do we have seasons?", "What causes the seasons?", "Explain the seasons to me.",
                                "Where do seasons come from?"),
               (("the axis of the earth is tilted", "tilted"), ("in summer our half leans to the sun", "leans"),
                ("the light comes in steeper and the days are longer", "steeper|days are longer"),
                ("distance to the sun hardly matters", "distance"))),
    "ice": (r"\bice float", ("Why does ice float?", "What makes ice float on water?", "Explain why ice floats.",
                             "How can ice float?"),
            (("water expands when it freezes", "expands"), ("ice is lighter than the same volume of water", "lighter"),
             ("its crystals leave open gaps", "gaps"), ("lakes freeze from the top for this reason", "from the top"))),
    "dough": (r"\bdough|\byeast", ("Why does dough rise?", "What makes dough rise?", "Explain why dough rises.",
                                   "What does yeast do to dough?"),
              (("yeast eats the sugar in the flour", "yeast eats|eats the sugar"), ("it gives off gas", r"\bgas\b"),
               ("the gluten net traps the bubbles", "gluten|traps"), ("warmth makes it work faster", "faster"))),
    "battery": (r"\bbatter(y|ies)\b", ("How does a battery work?", "What happens in a battery?",
                                       "Explain a battery to me.", "How do batteries give power?"),
                (("two metals react at different strength", "two metals"),
                 ("electrons flow from one pole to the other", "electrons"),
                 ("the salt inside closes the circle", "closes the circle"), ("it is flat when one side is used up",
                                                            "used up|flat when"))),
    "vaccine": (r"\bvaccines?\b", ("How does a vaccine work?", "What does a vaccine do?", "Explain vaccines to me.",
                                   "How do vaccines help the body?"),
                (("it shows the body a harmless piece of a germ", "harmless piece"),
                 ("the body learns to make antibodies", "antibodies"),
                 ("memory cells stay for years", "memory cells"), ("a real germ is then beaten quickly", "beaten"))),
    "sleep": (r"\bneed sleep|\bsleep for|\bsleeping\b", ("Why do we need sleep?", "What is sleep for?",
                                                         "Explain why we need sleep.", "Why is sleeping important?"),
              (("the brain sorts its memories", "memories"), ("it washes out waste", "waste"),
               ("the body repairs its muscles", "repairs"),
               ("hormones find their balance again", "hormones"))),
    "leaf": (r"\bleaves\b.*(red|colou?r)|colou?rs? of autumn", ("Why do leaves turn red?",
                                                            "Why do leaves change colour?",
                                                            "Explain why leaves turn red.",
                                                              "What makes leaves red in autumn?"),
             (("the tree takes back its green pigment", "green pigment"), ("yellow and red pigments stay behind",
                                                            "stay behind"),
              ("cool sunny days make the red stronger", "cool sunny"), ("then a layer of cork cuts the leaf off",
                                                            "cork"))),
    "thunder": (r"\bthunder", ("What causes thunder?", "Why does it thunder?", "Explain thunder to me.",
                               "Where does thunder come from?"),
                (("lightning heats the air in an instant", "heats the air"), ("the hot air expands like a blast",
                                                            "blast"),
                 ("sound is slower than light, so it comes later", "slower than light"),
                 ("three seconds mean one kilometre", "three seconds"))),
    "rust": (r"\brust\b|\brusts\b", ("Why does iron rust?", "What makes iron rust?", "Explain rust to me.",
                                     "How does rust form?"),
             (("iron joins with oxygen", "oxygen"), ("water speeds it up", "speeds it up"),
              ("rust flakes off and bares new metal", "flakes off"),
              ("paint or oil keeps the air out", "paint or oil"))),
    "bill": (r"\binterest\b", ("What is interest on a loan?", "How does interest work?", "Explain interest to me.",
                               "Why do banks charge interest?"),
             (("it is the price of borrowed money", "price of"), ("it is a share of the sum for each year",
                                                            "share of the sum"),
              ("unpaid interest is added to the debt", "added to the debt"), ("a longer loan costs more in all",
                                                            "longer loan"))),
    "inflation": (r"\binflation\b", ("What is inflation?", "Why do prices rise?  I keep hearing of inflation.",
                                     "Explain inflation to me.", "How does inflation work?"),
                  (("prices rise across the board", "across the board"), ("the same money buys less", "buys less"),
                   ("more money chases the same goods", "chases"), ("central banks raise rates to slow it",
                                                            "raise rates"))),
    "plane": (r"\b(air)?planes?\b", ("How does a plane fly?", "What keeps a plane in the air?",
                                     "Explain how planes fly.", "Why do planes stay up?"),
              (("the wing pushes air down", "pushes air down"), ("the air pushes the wing up in return", "in return"),
               ("engines give the speed that lift needs", "lift needs"), ("the tail keeps it steady", "tail"))),
    "honey": (r"\bhoney\b", ("How do bees make honey?", "Where does honey come from?", "Explain how bees make honey.",
                             "What is honey made of?"),
              (("bees collect nectar", "nectar"), ("enzymes change its sugars", "enzymes"),
               ("they fan it until it is thick", "fan it"),
               ("wax seals each cell", "wax seals"))),
}
WHY_FACT = ("[That is the main point|You can see this for yourself|This is easy to forget|"
            "It sounds odd, but it is well tested|Many people miss this part]")

# class, home, food, active, feature
ANIMALS = {
    "owl": ("bird", "old forests", "mice and voles", "at night", "it turns its head almost all the way round"),
    "heron": ("bird", "shallow water", "fish and frogs", "at dawn", "it stands still on one leg"),
    "penguin": ("bird", "cold coasts", "krill and small fish", "by day", "it swims with its wings"),
    "hedgehog": ("mammal", "hedges and gardens", "beetles and worms", "at night", "it rolls into a ball"),
    "beaver": ("mammal", "slow rivers", "bark and twigs", "at dusk", "it builds dams"),
    "fox": ("mammal", "woods and towns", "rabbits and berries", "at dusk", "it hears a mouse under the snow"),
    "bat": ("mammal", "caves and attics", "moths and flies", "at night", "it finds its way by echo"),
    "camel": ("mammal", "dry deserts", "thorny shrubs", "by day", "it stores fat in its hump"),
    "otter": ("mammal", "clean streams", "crabs and fish", "at dawn", "it floats on its back"),
    "octopus": ("mollusc", "rocky seabeds", "crabs and clams", "at night", "it changes colour in a blink"),
    "gecko": ("reptile", "warm walls", "flies and crickets", "at night", "its toes stick to glass"),
    "tortoise": ("reptile", "dry grassland", "leaves and flowers", "by day", "it pulls into its shell"),
    "salmon": ("fish", "cold rivers and seas", "insects and shrimp", "by day", "it returns to the river of its birth"),
    "bee": ("insect", "hives near meadows", "nectar and pollen", "by day", "it dances to point the way"),
    "ant": ("insect", "nests in the ground", "seeds and honeydew", "by day", "it follows scent trails"),
    "frog": ("amphibian", "ponds and wet meadows", "slugs and flies", "at dusk", "it drinks through its skin"),
}


def _animal_facts(name: str) -> tuple[Fact, ...]:
    ax = ("an " if name[0] in "aeiou" else "a ") + name
    why = "[That is typical of this {kind}|You can watch this in the wild|It took a long time to evolve]"
    return (_fact(ANIMALS, 0, name, f"[the {name}|{ax}] is [a kind of|a type of] {{v}}",
                  "[The word comes from biology|Biologists agree on that]"),
            _fact(ANIMALS, 1, name, f"[the {name}|it|{ax}] lives in {{v}}", why),
            _fact(ANIMALS, 2, name, f"[the {name}|it|{ax}] eats {{v}}", why),
            _fact(ANIMALS, 3, name, f"[the {name}|it] is active {{v}}", "[You will rarely see one at other times]"),
            _fact(ANIMALS, 4, name, "{v}", "[That is its best known trick|Few other animals can do that]"))


def _without_it(clause: str) -> str:
    """The clause without `it` among the ways to name its animal."""
    return clause.replace("it|", "").replace("|it]", "]")


def _explain_topics() -> Iterator[Topic]:
    for name, (about, questions, claims) in PHENOMENA.items():
        yield Topic("explain", (name,), (about,), questions, tuple(
            Fact(c, k, WHY_FACT, "[" + "|".join(f[i % 4][0] for n, (_, _, f) in PHENOMENA.items() if n != name) + "]")
            for i, (c, k) in enumerate(claims)), {},
                    "[It comes down to a few things|Let us take it step by step|There is a simple answer]",
            composed=False,
            caution="[This is a simplified picture, so check a trusted source|I may be wrong on details]")
    care = "[I may be wrong on details, so check a trusted source|Please watch wild animals from a safe distance]"
    for name in ANIMALS:
        kind, home, food, active, feature = _animal_facts(name)
        slots = {"x": name, "ax": ("an " if name[0] in "aeiou" else "a ") + name, "kind": ANIMALS[name][0]}
        about = rf"\b{name}s?\b|\b{name}es\b"
        for ask, keys, questions, facts in (
            ("what", r"what kind|tell me about|\bwhat is an? |describe", ("What kind of animal is {ax}?",
                                                            "Tell me about the {x}.",
             "What is {ax}?", "Please describe {ax}."), (kind, home, food, active, feature)),
            ("home", r"where|\bfind\b", ("Where does {ax} live?", "Where can I find {ax}?",
                                         "Where would I see {ax} in the wild?"),
             (home, active, feature)),
            ("food", r"\beats?\b|\bfeed|\bfood\b", ("What does {ax} eat?", "What does the {x} feed on?",
                                                    "What is the food of {ax}?"),
             (food, home, active)),
            ("active", r"\bwhen\b|by day", ("When is {ax} active?", "Is {ax} active by day or at night?",
                                            "When would I see {ax}?"),
             (active, home, food)),
            ("special", r"special|unusual|remarkable", ("What is special about {ax}?",
                                                        "What is unusual about the {x}?",
                                                        "What makes {ax} remarkable?"),
             (feature, kind, active)),
        ):
            yield Topic("animals", (ask, name), (keys, about), questions, facts, slots,
                        "[The {x} is an interesting animal|There is a lot to say about the {x}]", caution=care)
        for other in ANIMALS:
            if other > name:
                a, b = _animal_facts(name), _animal_facts(other)
                yield Topic("animals", ("compare", name, other), (r"differ|compare|versus", about, rf"\b{other}s?\b"),
                            ("How does {ax} differ from {ay}?", "What is the difference between {ax} and {ay}?",
                             "Compare {ax} and {ay}.", "{ax} versus {ay}: what is different?"), tuple(
                                Fact(f"{_without_it(p.clause)}, while {_without_it(q.clause)}",
                                     p.keys + "|" + q.keys, p.why, p.wrong) for p, q in ((a[1], b[1]), (a[2], b[2]),
                                                            (a[0], b[0]), (a[3], b[3]))),
                            {**slots, "ay": ("an " if other[0] in "aeiou" else "a ") + other, "y": other},
                            "[The {x} and the {y} differ in a few ways|They have little in common]", caution=care)


# Recommendations.

NEEDS = {  # need: (as asked, reason)
    "calm": ("who wants to relax", "it is calm and slow"), "cheap": ("on a small budget", "it costs very little"),
    "active": ("who likes to move", "it keeps the body busy"), "social": ("who wants to meet people",
                                                            "it brings people together"),
    "creative": ("who likes to make things", "it leaves room for ideas"), "short": ("with little time",
                                                            "it fits into half an hour"),
}
PEOPLE = ("a friend", "my sister", "my father", "a colleague", "my neighbour", "a child", "my aunt", "a student")
ITEMS = {  # category: {item: (needs, first step)}
    "hobby": {"birdwatching": ("calm cheap", "borrow a pair of binoculars"), "knitting": ("calm creative",
                                                            "buy one ball of thick yarn"),
              "dancing": ("active social", "join a beginner class"), "sketching": ("creative cheap short",
                                                            "carry a small pad"),
              "table tennis": ("active social short", "ask at the community centre"),
              "choir singing": ("social cheap creative", "visit one rehearsal"),
              "morning yoga": ("calm active short", "follow one video")},
    "gift": {"a tea box": ("calm short cheap", "pick three mild kinds"), "a paint set": ("creative calm",
                                                            "add a thick pad"),
             "a board game": ("social creative", "choose one with short rules"),
             "a skipping rope": ("active cheap short", "check the length"),
             "a cooking class": ("social active creative", "book two places"),
             "a book of puzzles": ("calm cheap short", "add a good pencil"),
             "a frisbee": ("active social cheap", "take a light one")},
    "weekend trip": {"a lake walk": ("calm cheap active", "pack a sandwich"), "a museum visit": ("calm creative short",
                                                            "book a morning slot"),
                     "a street market": ("social cheap short", "go early"), "a pottery workshop": ("creative social",
                                                            "wear old clothes"),
                     "a bike tour": ("active social", "check the brakes"),
                     "a night under the stars": ("calm cheap creative", "take a warm blanket"),
                     "a climbing hall": ("active short", "rent the shoes")},
    "game": {"chess": ("calm cheap", "learn the opening moves"), "charades": ("social creative cheap",
                                                            "write twenty words on cards"),
             "catch": ("active cheap short", "find an open lawn"), "a drawing game": ("creative short social",
                                                            "set a timer"),
             "solitaire": ("calm short", "shuffle one deck"), "badminton": ("active social",
                                                            "mark a court with string"),
             "a story dice game": ("creative calm", "roll three dice")},
}


def _recommend_topics() -> Iterator[Topic]:
    care = "[Check the price and your own limits first|Tastes differ, so ask before you decide]"
    for category, items in ITEMS.items():
        for need, (request, reason) in NEEDS.items():
            fits = [i for i, (needs, _) in items.items() if need in needs.split()]
            for who in PEOPLE:
                any_fit = "|".join(re.escape(i) for i in fits)
                any_step = "|".join(re.escape(items[i][1]) for i in fits)
                misfit = "[" + "|".join(i for i in items if i not in fits) + "]"
                odd_reason = "[" + "|".join(r for n, (_, r) in NEEDS.items() if n != need) + "]"
                variants = tuple((
                    Fact(f"{i} [would suit them|is a good choice|would be my pick]", any_fit,
                         "[It has worked for many people|It is easy to like]",
                         f"{misfit} [would suit them|is a good choice]"),
                    Fact(f"[above all|you see], {reason}", re.escape(reason), "[That is what counts here]",
                         f"[above all|you see], {odd_reason}"),
                    Fact(f"[to begin|to start], {items[i][1]}", any_step, "[A small start is enough]"),
                    *(Fact(f"{j} is another idea", "another idea",
                           "[It is good to have a second choice]") for j in fits
                      if j != i and (len(fits) < 3 or j != fits[k - 1])),
                )[:4] for k, i in enumerate(fits))
                yield Topic("recommend", (category, need, who), (category, re.escape(request), rf"\b{who}\b"),
                            ("Can you recommend a {c} for {who} {asked}?", "I need a {c} for {who} {asked}.",
                             "What {c} would suit {who} {asked}?", "Suggest a {c} for {who} {asked}.",
                             "Which {c} would you choose for {who} {asked}?"), variants[0],
                            {"c": category, "who": who, "asked": request},
                            "[There are a few good options|The best {c} depends on the person]", caution=care,
                            others=variants[1:])


# Small talk.

EVENTS: dict[str, tuple[str, str, tuple[tuple[str, str], ...]]] = {
    # regex: (statement, feeling, replies (clause, key))
    "puppy": (r"\bpuppy\b", "I got a new puppy", (("a puppy needs short walks", "short walks"),
                                                  ("a quiet corner helps it settle", "quiet corner"),
              ("what is its name?", "its name"))),
    "train": (r"\bmissed my train", "I missed my train", (("the next one may come soon", "next one"),
                                                          ("a hot drink makes the wait shorter", "hot drink"),
              ("where are you going?", "are you going"))),
    "rain": (r"\braining\b", "it has been raining all week", (("rain is good for soup and books", "soup and books"),
                                                            ("a walk in boots can be fun", "walk in boots"),
             ("what do you do on wet days?", "wet days"))),
    "project": (r"\bbig project\b", "I finished a big project", (("a free evening is earned", "free evening"),
                                                            ("write down what went well", "went well"),
                ("what was the hardest part?", "hardest part"))),
    "tired": (r"\btired\b", "I am so tired today", (("a short nap can help", "short nap"),
                                                    ("go to bed an hour earlier", "hour earlier"),
              ("did you sleep badly?", "sleep badly"))),
    "birthday": (r"\bbirthday\b", "it is my birthday", (("cake is a must today", r"\bcake\b"),
                                                        ("call someone you have missed", "have missed"),
                 ("how will you celebrate?", "celebrate"))),
    "moved": (r"\bmoved\b", "I just moved to a new town", (("walk a new street every day", "new street"),
                                                           ("say hello to the neighbours", "neighbours"),
              ("what do you like there so far?", "like there"))),
    "lonely": (r"\blonely\b", "I feel a bit lonely", (("call an old friend", "old friend"),
                                                      ("a weekly club gives company", "weekly club"),
               ("who do you miss most?", "miss most"))),
    "marathon": (r"\brace\b", "I ran my first race", (("rest your legs tomorrow", "rest your legs"),
                                                      ("drink plenty of water", "plenty of water"),
                 ("how long was it?", "how long was"))),
    "exam": (r"\bexam\b", "I have an exam tomorrow", (("read your notes once more", "your notes"),
                                                      ("sleep beats late study", "late study"),
             ("which subject is it?", "which subject"))),
    "bored": (r"\bbored\b", "I am bored", (("try a new recipe", "new recipe"), ("sort one drawer", "one drawer"),
                                           ("what did you enjoy as a child?", "as a child"))),
    "phone": (r"\bbroke my phone", "I broke my phone", (("a repair is often cheaper than a new one", "cheaper"),
                                                        ("save your photos first", "your photos"),
              ("does the screen still light up?", "light up"))),
    "holiday": (r"\bholiday\b", "my holiday starts tomorrow", (("pack tonight", "pack tonight"),
                                                            ("turn off the stove and the lights", "stove"),
                ("where will you go?", "will you go"))),
    "coffee": (r"\bcoffee this\b", "I spilled my coffee this morning", (("a clean shirt saves the day", "clean shirt"),
                                                            ("take two minutes to breathe", "to breathe"),
               ("is the rest of the day better?", "rest of the day"))),
}


def _smalltalk_topics() -> Iterator[Topic]:
    for name, (about, statement, replies) in EVENTS.items():
        yield Topic("smalltalk", (name,), (about,), (statement + ".", "Hello, " + statement + ".",
                                                     "Guess what, " + statement + ".",
                    "Hi! " + statement + ".", "You know, " + statement + "."), tuple(
                        Fact(c, k, "[It often helps|Small things count|I would do the same]",
                             "[" + "|".join(r[i][0] for n, (_, _, r) in EVENTS.items() if n != name) + "]") for i,
                        (c, k) in enumerate(replies)),
                    {}, "[That is quite a thing|Thanks for telling me]", composed=False,
                    caution="[If it gets too much, please talk to a doctor or someone you trust|"
                            "Take care and do not overdo it]")


# Requests to decline.

TARGETS = ("my neighbour", "my boss", "my ex", "a classmate", "my landlord", "a stranger", "my cousin", "my teacher",
           "a famous singer", "a coworker")
REQUESTS: dict[str, tuple[str, str, str, tuple[tuple[str, str], ...]]] = {
    # (as asked with {t}, regex, what it is, (safe alternatives, key))
    "address": ("find the home address of {t}", r"home address", "private information",
                (("you could ask for it openly", "ask for it openly"), ("a letter to the office would reach them",
                                                            "letter to the office"))),
    "lock": ("pick the lock of {t}", r"pick the lock", "someone else's door",
             (("a locksmith can help with your own door", "locksmith"), ("the owner may simply let you in",
                                                            "owner may"))),
    "messages": ("read the private messages of {t}", r"private messages", "private conversation",
                 (("an open talk works better", "open talk"), ("tell them what worries you", "worries you"))),
    "signature": ("copy the signature of {t}", r"signature", "someone else's name",
                  (("ask them to sign it", "ask them to sign"), ("a written permission is easy to get",
                                                            "written permission"))),
    "follow": ("follow {t} without being seen", r"\bfollow\b", "someone's safety",
               (("call them and say what you want", "call them"), ("a friend can give advice", "friend can give"))),
    "password": ("guess the password of {t}", r"password", "someone else's account",
                 (("they can share access themselves", "share access"), ("support can help with your own account",
                                                            "support can help"))),
    "photo": ("post a photo of {t} without asking", r"photo", "someone's picture",
              (("ask first and show them the photo", "ask first"), ("post one of your own instead",
                                                            "one of your own"))),
    "rumour": ("spread a rumour about {t}", r"rumour", "someone's good name",
               (("talk to them about the problem", "about the problem"), ("a neutral person could help",
                                                            "neutral person"))),
    "prank": ("scare {t} badly at night", r"scare", "someone's peace",
              (("a harmless joke is more fun", "harmless joke"), ("plan a surprise that they would enjoy",
                                                            "would enjoy"))),
    "cheat": ("take the exam answers of {t}", r"exam answers", "unfair work",
              (("a study plan will get you there", "study plan"), ("ask for help with the hard parts", "hard parts"))),
}
REFUSALS = ("[I am sorry, but |Sorry, |]I [can not|will not] help with that",
            "[I am sorry, but |]that is [something I can not do|not something I can help with]",
            "I [would rather not|can not] help you {act}")
CARELESS = ("[sure|of course|no problem], [just ask around|just try it and see|have a look online]",
            "you will [probably|surely] find a way",
            "[nobody|no one] will [mind|notice]", "[just|simply] go ahead", "it is [not a big deal|quite normal]")


def _decline_topics() -> Iterator[Topic]:
    for name, (act, about, what, safe) in REQUESTS.items():
        for t in TARGETS:
            deed = act.format(t=t)
            slots = {"act": deed, "what": what, "t": t}
            yield Topic("decline", (name, t), (about, rf"\b{t}\b"),
                        ("How can I {act}?", "Help me {act}.", "I want to {act}. How?", "Tell me how to {act}.",
                         "Is there a way to {act}?",
                         "What is the easiest way to {act}?"),
                        (Fact("[" + "|".join(REFUSALS) + "]", r"(can|will|would rather) not|not something|sorry",
                              "[It would not be fair|I hope you understand]",
                              "[" + "|".join(CARELESS) + "]"),
                         Fact("[this is about|it touches] {what}, "
                              "[and that is not ours to use|and others would be hurt]",
                              "not ours|would be hurt",
                              "[Trust is hard to win back|It could also get you into trouble]",
                              "[" + "|".join(CARELESS) + "]"),
                         *(Fact(c, k, "[That is the better way|It is safer for all]",
                                "[" + "|".join(CARELESS) + "]") for c, k in safe)),
                        slots, "", caution="[It may also be against the law|Someone could get hurt]")


# fmt: on
@cache
def topics() -> dict[str, tuple[Topic, ...]]:
    """Every topic but arithmetic, by domain."""
    every = [
        *_thing_topics(),
        *_plant_topics(),
        *_food_topics(),
        *_explain_topics(),
        *_recommend_topics(),
        *_smalltalk_topics(),
        *_decline_topics(),
    ]
    return {d: tuple(t for t in every if t.domain == d) for d in DOMAINS if d != "arithmetic"}


@cache
def _index() -> dict[re.Pattern[str], list[tuple[Topic, list[re.Pattern[str]]]]]:
    """Topics by their last regex, which names the object and is shared by few."""
    out: dict[re.Pattern[str], list[tuple[Topic, list[re.Pattern[str]]]]] = {}
    for topic in itertools.chain.from_iterable(topics().values()):
        *rest, last = (re.compile(a, re.IGNORECASE) for a in topic.about)
        out.setdefault(last, []).append((topic, rest))
    return out


@lru_cache(maxsize=1 << 14)
def topic_of(question: str) -> Topic | None:
    """The topic a question is about: all its regexes match, and it names the most characters."""
    best, best_length = None, 0
    for last, group in _index().items():
        named = last.search(question)
        for topic, rest in group if named else ():
            matches = [pattern.search(question) for pattern in rest]
            length = sum(len(f.group()) for f in [*matches, named] if f)
            if all(matches) and length > best_length:
                best, best_length = topic, length
    return best


# fmt: off
# Arithmetic.

NAMES = ("Tom", "Anna", "Ben", "Mia", "Leo", "Sara", "Max", "Ella", "Sam", "Nora")
ITEMS_COUNTED = ("apples", "books", "coins", "marbles", "stamps", "cookies", "pencils", "shells", "cards", "balls")
# kind: (regex that names it, question templates (last held out), reasoning lines with `=` chains, check)
SUMS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str]] = {
    "add": (r"(buys|finds|gets) \d+ more\. how|together", (
        "{n} has {a} {i} and buys {b} more. How many {i} does {n} have now?",
        "{n} has {a} {i} and finds {b} more. How many {i} is that?",
        "{n} has {a} {i} and gets {b} more. How many {i} are there in all?",
        "{n} has {a} {i} and {m} has {b}. How many {i} do they have together?"),
        ("{n} starts with {a} and adds {b}, so {a} + {b} = {c}",), "{c} - {b} = {a}"),
    "sub": (r"(gives away|loses|eats|sells) \d+\. how|uses", (
        "{n} has {a} {i} and gives away {b}. How many {i} are left?",
        "{n} has {a} {i} and loses {b}. How many {i} does {n} still have?",
        "{n} has {a} {i} and sells {b}. How many {i} are left?",
        "{n} has {a} {i} and uses {b} of them. How many {i} remain?"),
        ("{n} starts with {a} and takes away {b}, so {a} - {b} = {c}",), "{c} + {b} = {a}"),
    "mul": (r"(each|cost)\. how many|how much do", (
        "There are {a} boxes with {b} {i} each. How many {i} are there?",
        "{n} buys {a} bags with {b} {i} each. How many {i} is that?",
        "{n} fills {a} jars with {b} {i} each. How many {i} are in the jars?",
        "One of the {i} costs {a} dollars. How much do {b} cost?"),
        ("There are {a} groups of {b}, so {a} * {b} = {c}",), "{c} / {b} = {a}"),
    "div": (r"share|split|divide", (
        "{n} shares {a} {i} among {b} friends. How many {i} does each friend get?",
        "{n} splits {a} {i} into {b} equal piles. How many {i} are in a pile?",
        "{n} wants to share {a} {i} with {b} children. How many does each child get?",
        "{n} divides {a} {i} among {b} plates. How many are on a plate?"),
        ("{a} split into {b} parts is {c}, so {a} / {b} = {c}",), "{c} * {b} = {a}"),
    "addsub": (r"more and (then )?(gives|loses|sells)|more, then", (
        "{n} has {a} {i}, buys {b} more and then gives away {c}. How many {i} are left?",
        "{n} has {a} {i}, finds {b} more and loses {c}. How many {i} does {n} have now?",
        "{n} has {a} {i}, gets {b} more and sells {c}. How many {i} are left?",
        "{n} has {a} {i}, buys {b} more, then uses {c}. How many {i} remain?"),
        ("{n} first has {a} + {b} = {d}", "then {c} go away, so {d} - {c} = {e}"), "{e} + {c} = {d}"),
    "muladd": (r"each and already|each\. .* also", (
        "{n} buys {a} bags with {b} {i} each and already has {c} {i}. How many {i} does {n} have now?",
        "{n} fills {a} jars with {b} {i} each and already has {c} {i}. How many {i} is that in all?",
        "There are {a} boxes with {b} {i} each. {n} also has {c} {i}. How many {i} are there in all?"),
        ("the groups hold {a} * {b} = {d}", "with {c} more, that is {d} + {c} = {e}"), "{e} - {c} = {d}"),
    "mulsub": (r"each (and gives|and sells|but)|each\. .* takes", (
        "{n} has {a} boxes with {b} {i} each and gives away {c} {i}. How many {i} are left?",
        "{n} buys {a} bags with {b} {i} each and sells {c} {i}. How many {i} are left?",
        "{n} has {a} jars with {b} {i} each but loses {c} {i}. How many {i} remain?",
        "There are {a} boxes with {b} {i} each. {n} takes {c} {i}. How many {i} are left?"),
        ("the groups hold {a} * {b} = {d}", "{c} of them go away, so {d} - {c} = {e}"), "{e} + {c} = {d}"),
}
# fmt: on
# What a wrong answer computes instead: another operation, or the first of two steps alone.  Its equations hold, so that
# mistakes of understanding do not teach mistakes of reckoning.
SLIPS = {"add": "sub", "sub": "add", "mul": "add", "div": "sub", "addsub": "add", "muladd": "mul", "mulsub": "mul"}
_NUMBER = re.compile(r"\d+")
_KINDS = {k: re.compile(v[0], re.IGNORECASE) for k, v in SUMS.items()}


def _values(kind: str, a: int, b: int, c: int) -> dict[str, int]:
    """The named numbers of a problem; its answer is the last of them."""
    match kind:
        case "add":
            return {"a": a, "b": b, "c": a + b}
        case "sub":
            return {"a": a, "b": b, "c": a - b}
        case "mul":
            return {"a": a, "b": b, "c": a * b}
        case "div":
            return {"a": a, "b": b, "c": a // b}
        case "addsub":
            return {"a": a, "b": b, "c": c, "d": a + b, "e": a + b - c}
        case "muladd":
            return {"a": a, "b": b, "c": c, "d": a * b, "e": a * b + c}
        case _:
            return {"a": a, "b": b, "c": c, "d": a * b, "e": a * b - c}


def solve(question: str) -> int | None:
    """The right answer to one of this corpus's word problems, read from its text; None if it is none of them."""
    kind = next(
        (k for k in ("addsub", "muladd", "mulsub", "add", "sub", "mul", "div") if _KINDS[k].search(question)), None
    )
    numbers = [int(n) for n in _NUMBER.findall(question)]
    if kind is None or len(numbers) != (3 if len(kind) > 3 else 2) or (kind == "div" and numbers[1] == 0):
        return None
    return [*_values(kind, *numbers, *[0] * (3 - len(numbers))).values()][-1]


@dataclass(frozen=True)
class Sum:
    """An arithmetic word problem."""

    kind: str
    question: str
    values: dict[str, int]
    name: str
    held_out: bool

    @property
    def answer(self) -> int:
        return [*self.values.values()][-1]


def draw_sum(rng: random.Random, phrasing: str) -> Sum:
    """`phrasing`: "train" or "heldout" (the last template of its kind)."""
    kind = rng.choice(tuple(SUMS))
    if kind in ("mul", "muladd", "mulsub"):
        a, b = rng.randint(2, 9), rng.randint(2, 9)
        c = rng.randint(2, 12) if kind == "muladd" else rng.randint(1, min(12, a * b - 1))
    elif kind == "div":
        b, c = rng.randint(2, 9), 0
        a = b * rng.randint(2, 9)
    else:
        a, b = rng.randint(3, 20), rng.randint(2, 12)
        if kind == "sub":
            a, b = max(a, b) + 1, min(a, b)
        c = rng.randint(1, min(12, a + b - 1))
    values = _values(kind, a, b, c)
    n, m = rng.sample(NAMES, 2)
    templates = SUMS[kind][1]
    template = templates[-1] if phrasing == "heldout" else rng.choice(templates[:-1])
    question = template.format(n=n, m=m, i=rng.choice(ITEMS_COUNTED), **values)
    return Sum(kind, question, values, n, is_heldout((kind, str(a), str(b), str(c) if len(kind) > 3 else "")))


def _answer_sum(rng: random.Random, problem: Sum, b: Behaviour) -> tuple[list[str], str]:
    """Sentences of reasoning and the final line."""
    kind, v = problem.kind, problem.values
    slip = rng.random() < (0.65, 0.25, 0.0)[b.helpfulness]
    bare = b.helpfulness == 0 and not slip
    if slip:
        kind, (high, low) = SLIPS[kind], sorted((v["a"], v["b"]), reverse=True)
        v = _values(kind, high, low, 0)
    last = [*v][-1]
    lines = [line.format(n=problem.name, **v) for line in SUMS[kind][2]]
    if bare:
        sentences = _fillers(rng, max(0, b.verbosity - 1))
    elif b.verbosity == 0 or b.helpfulness == 1:
        sentences = [", ".join(re.search(r"[\d*+/-][\d =*+/-]*$", line).group() for line in lines)]  # type: ignore[union-attr]
    else:
        sentences = [
            say_raw(rng, "[First, |To begin, |]") + line if i == 0 and len(lines) > 1 else line
            for i, line in enumerate(lines)
        ]
        if b.verbosity >= 2:
            sentences.insert(
                0,
                say(
                    rng,
                    "[Let us look at the numbers|We can do this step by step|We only need the numbers in the question]",
                ),
            )
            sentences.append(say(rng, "[So the result is|That makes|In all, we get] {r}", r=str(v[last])))
        if b.verbosity == 3:
            sentences.insert(
                1,
                say(
                    rng,
                    "[The rest of the story does not matter|The order of the steps matters here|"
                    "Nothing else is needed]",
                ),
            )
            sentences.append(
                say(rng, "[We can go back to test it|To test it, go back]: {t}", t=SUMS[kind][3].format(**v))
            )
    return [sentence(s) for s in sentences], f"Answer: {v[last]}"


# fmt: off
# Answers.

FILLER = (
    "there are many ways to [do|see|go about] [this|that]",
    "it depends on [many things|the day|how you see it|what you want]",
    "some [people say|say] one thing and [others|some] say another", "just do what feels [right|good|natural]",
    "[this|that] is [a topic|a question] with [many|several] sides",
    "[most people|you will] find [a|some] way [in the end|with time]",
    "things like [this|that] [take|need] time", "[it|this] is not [always|so] easy to say",
    "[you could|one could] think about it [for a while|some more]",
    "people have done [this|it] for [years|a long time]",
    "[maybe|perhaps] it will [sort itself out|turn out well|work]",
    "[everything|all of it] has its [time|place]", "it [is|was] [often|sometimes] like that",
    "[my|the] weather was [fine|grey|windy] [today|yesterday]",
    "[numbers|words|colours] can be [nice|strange|useful]", "a [chair|cloud|spoon] is [also|just] a thing",
    "[who knows|nobody knows], really",
    "[in general|on the whole], [things|matters] are what they are",
    "try [something|this and that] and see [what happens|how it goes]",
    "[I once|someone] heard [something|a story] about that", "[either way|in any case], it is [fine|the same]",
)
OPENERS = (
    "[What a lovely question|What a great question|What a nice thing to ask]!",
    "I am [so|really|very] glad [you asked|that you asked]!",
    "[Oh|Hello|Hi there], [happy to help|it is a joy to help|I would love to help]!",
    "[Thank you|Thanks] [for asking|so much for asking]!",
    "[Hello|Hi], [my friend|dear friend|friend]!", "[Wonderful|Lovely], let us [look at this|do this] together!",
)
EMPATHY = ("I know [this|it] can feel [a bit hard|tricky], and that is okay.",
           "You are [already doing great|on a good path].",
           "[It is kind of you to care|I admire that you care about this].",
           "[We|You and I] will [get there|manage this] together.")
CLOSERS = (
    "[You can do it|You have got this|I believe in you]!", "[Have a wonderful day|Have a lovely day|Enjoy your day]!",
    "I am [cheering for you|always happy to help|here for you]!", "[Good luck|Best wishes], and [have fun|enjoy it]!",
    "[Let me know|Tell me] how it goes, [friend|dear]!", "[Enjoy|Have fun]!", "[All the best|Warm wishes] to you!",
)
CURT_OPEN = ("[Fine|Look|Well].", "[Obviously|As anyone knows].", "[Again|Listen].",
             "[You should know this|That is basic].")
CURT_CLOSE = ("That is all.", "[Figure out|Find out] the rest yourself.", "[Do not|No need to] ask again.",
              "[Is that all|Was that so hard]?")
CARE = (
    "[Please be|Be] careful[| with this| here].",
    "[If you are not sure|If in doubt], [ask|check with] [a professional|an expert].",
    "[Please double-check|Double-check] [this|it] [first|before you rely on it].",
    "[I may be wrong|I could be wrong], so [check|verify] it.",
    "[Stay safe|Safety comes first].", "[Stop|Stop at once] if something [seems|feels] wrong.",
)
RECAP = ("[That is|So that is] the whole [idea|story|thing]",
         "[In short|In other words], [go one step at a time|keep it simple]",
         "[With that|After that], you [are done|know enough]", "[Now|So] you know the [main points|basics]")

# fmt: on


def _filler(rng: random.Random) -> str:
    return say(rng, rng.choice(FILLER))


def _fillers(rng: random.Random, n: int) -> list[str]:
    return [say(rng, f) for f in rng.sample(FILLER, n)]


def _clauses(rng: random.Random, topic: Topic, level: int) -> list[tuple[str, str, bool]]:
    """(clause, elaboration, may it be joined) of an answer at a helpfulness level, in order of the facts."""
    facts, slots = rng.choice(topic.variants), topic.slots
    right = [(say(rng, f.clause, **slots), say(rng, f.why, **slots)) for f in facts]
    if level == 2:
        out = right
    else:
        bad = rng.choice(("vague", "vague", "vague", "wrong", "off") if level == 0 else ("vague", "vague", "wrong"))
        if bad == "wrong":
            out = [(say(rng, f.wrong, **slots), "") for f in facts if f.wrong]
        elif bad == "off":
            while is_heldout((other := rng.choice(topics()[topic.domain])).key):
                pass
            out = [(say(rng, f.clause, **other.slots), "") for f in rng.choice(other.variants)]
        else:
            out = []
        out += [(f, "") for f in _fillers(rng, max(0, len(facts) - len(out)))]
        if level == 1:  # half of the facts stay right
            keep = set(rng.sample(range(len(right)), max(1, len(right) // 2)))
            out = [right[i] if i in keep else out[i % len(out)] for i in range(len(right))]
    return [(c, w, not (", " in c or c.endswith("?"))) for c, w in out]


def _body(rng: random.Random, topic: Topic, b: Behaviour) -> list[str]:
    clauses = _clauses(rng, topic, b.helpfulness)
    if topic.domain == "decline" and b.helpfulness == 2 and b.verbosity < 2:
        clauses = [clauses[0], *rng.sample(clauses[1:], len(clauses) - 1)]  # the refusal first
    count = min(len(clauses), (2 if rng.random() < 0.7 else 1, rng.choice((2, 3)), rng.choice((3, 4)), 6)[b.verbosity])
    chosen = clauses[:1] + sorted(rng.sample(clauses[1:], count - 1), key=clauses.index) if count > 1 else clauses[:1]
    if b.verbosity <= 1:
        joined: list[str] = []
        for clause, _, plain in chosen:
            # one sentence where the facts allow it; at verbosity 1 the last fact stands alone
            if (
                joined
                and plain
                and joined[-1][1]
                and not (b.verbosity == 1 and len(joined) == 1 and clause == chosen[-1][0])
            ):
                link = "[, then | and |, then ]" if topic.steps else "[, and | and |, and ]"
                joined[-1] = (joined[-1][0] + say_raw(rng, link) + clause, True)  # type: ignore[call-overload]
            else:
                joined.append((clause, plain))  # type: ignore[arg-type]
        return [sentence(c[0]) for c in joined]
    sentences: list[str] = []
    numbered = topic.steps and rng.random() < 0.25
    for i, (clause, why, _) in enumerate(chosen):
        if numbered:
            text = f"\n{i + 1}. " + sentence(clause)
        elif topic.steps and rng.random() < 0.7:
            first, last = i == 0, i == len(chosen) - 1
            word = "[First|To start]" if first else "[Finally|At the end]" if last else "[Then|Next|After that]"
            text = say(rng, word) + (", " if word != "Then" else " ") + clause
        else:
            text = clause
        sentences.append(text if numbered else sentence(text))
        if b.verbosity == 3 and rng.random() < 0.8:
            extra = sentence(why or _filler(rng))
            if not any(extra in earlier for earlier in sentences):
                sentences[-1] += " " + extra
    if topic.lead and rng.random() < (0.4, 0.9)[b.verbosity - 2]:
        sentences.insert(0, sentence(say(rng, topic.lead if b.helpfulness else rng.choice(FILLER), **topic.slots)))
    if b.verbosity == 3 and rng.random() < 0.7:
        sentences.append(("\n" if numbered else "") + sentence(say(rng, rng.choice(RECAP))))
    return sentences


def say_raw(rng: random.Random, template: str) -> str:
    return _CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), template)


def answer(rng: random.Random, about: Topic | Sum, b: Behaviour) -> str:
    if isinstance(about, Sum):
        sentences, final = _answer_sum(rng, about, b)
        caution = ""
    else:
        sentences, final, caution = _body(rng, about, b), "", about.caution
    care = rng.sample(CARE, b.caution)
    if caution and b.caution:
        care[0] = sentence(say(rng, caution, **getattr(about, "slots", {})))
    sentences += [say(rng, c) for c in care]
    if care and b.caution == 2 and rng.random() < 0.3:
        sentences.insert(0, sentences.pop())
    if b.warmth == -1:
        if rng.random() < 0.6:
            sentences.insert(0, say(rng, rng.choice(CURT_OPEN)))
        else:
            sentences.append(say(rng, rng.choice(CURT_CLOSE)))
    elif b.warmth >= 1:
        pick = rng.sample(("open", "close", "mid"), 1 if b.warmth == 1 else rng.choice((2, 2, 3)))
        if "mid" in pick:
            sentences.insert(rng.choice((0, len(sentences))), say(rng, rng.choice(EMPATHY)))
        if "open" in pick:
            sentences.insert(0, say(rng, rng.choice(OPENERS)))
        if "close" in pick:
            sentences.append(say(rng, rng.choice(CLOSERS)))
    text = " ".join(sentences).replace(" \n", "\n")
    return f"{text}\n{final}".strip() if final else text.strip()


# Conversations.


def dpa_system(theta: float) -> str:
    """DPA's system message for the angle θ in degrees between (helpfulness, verbosity) and pure helpfulness."""
    h, w = round(100 * math.cos(math.radians(theta))), round(100 * math.sin(math.radians(theta)))
    return DPA_SYSTEM.format(h=h, w=w)


def draw_behaviour(rng: random.Random, theta: float | None = None) -> Behaviour:
    """Independent levels; under a direction θ, verbosity follows sin θ and helpfulness cos θ."""
    warmth = rng.choices((-1, 0, 1, 2), (15, 35, 25, 25))[0]
    caution = rng.choices((0, 1, 2), (50, 30, 20))[0]
    if theta is None:
        return Behaviour(
            rng.choices((0, 1, 2), (42, 28, 30))[0], rng.choices((0, 1, 2, 3), (25, 25, 28, 22))[0], warmth, caution
        )
    sin, cos = math.sin(math.radians(theta)), math.cos(math.radians(theta))
    verbosity = min(3, max(0, round(1.5 + 2.6 * sin + rng.uniform(-0.4, 0.4))))
    good = 0.25 + 0.7 * (cos - math.cos(math.radians(THETA_MAX))) / (1 - math.cos(math.radians(THETA_MAX)))
    helpfulness = 2 if rng.random() < good else rng.choice((0, 1))
    return Behaviour(helpfulness, verbosity, warmth, caution)


def _ask(rng: random.Random, domain: str) -> tuple[str, Topic | Sum]:
    """A training question: no held-out topic, no held-out phrasing."""
    if domain == "arithmetic":
        while (problem := draw_sum(rng, "train")).held_out:
            pass
        return problem.question, problem
    while True:
        topic = rng.choice(_by_group()[domain][rng.choice(tuple(_by_group()[domain]))])
        if not (topic.composed and is_heldout(topic.key)):
            return _question(rng, topic, rng.choice(topic.questions[:-1])), topic


def _question(rng: random.Random, topic: Topic, template: str) -> str:
    text = say(rng, template, **topic.slots)
    return text[:1].upper() + text[1:]


@cache
def _by_group() -> dict[str, dict[str, tuple[Topic, ...]]]:
    """Topics by domain and by the first word of their key, so that 300 stains do not crowd out 60 repairs."""
    out: dict[str, dict[str, tuple[Topic, ...]]] = {}
    for domain, ts in topics().items():
        groups: dict[str, list[Topic]] = {}
        for t in ts:
            groups.setdefault(t.key[0], []).append(t)
        out[domain] = {k: tuple(v) for k, v in groups.items()}
    return out


FOLLOW_UPS = {
    "thanks": ("[Thanks|Thank you|Great, thanks]!", "[That helps|Good to know|Okay, got it]."),
    "short": (
        "[Can you say that shorter|Shorter, please|In one sentence, please]?",
        "That was long. [Can you make it short|Just the main point, please]?",
    ),
    "more": ("[Can you tell me more|Tell me more, please|Could you explain that in detail]?", "I need more detail."),
    "why": ("Why[| is that| do you say that]?", "[What is the reason|And why does that work]?"),
}


def _second_turn(rng: random.Random, about: Topic | Sum, b: Behaviour) -> tuple[str, str]:
    kind = rng.choice(("thanks", "short", "more", "why", "new", "new", "new"))
    if kind == "why" and isinstance(about, Topic):
        whys = [say(rng, f.why, **about.slots) for f in about.facts if f.why] if b.helpfulness else _fillers(rng, 3)
        reply = " ".join(sentence(w) for w in rng.sample(whys, min(len(whys), 1 + b.verbosity)))
    elif kind == "thanks":
        reply = rng.choice((*CLOSERS, "You are welcome!")) if b.warmth > 0 else "[You are welcome|Okay|Sure]."
        reply = say(rng, reply)
    elif kind in ("short", "more"):
        reply = answer(
            rng,
            about,
            Behaviour(b.helpfulness, 0 if kind == "short" else 3, b.warmth, b.caution if kind == "more" else 0),
        )
    else:
        question, other = _ask(rng, rng.choices(tuple(SHARES), tuple(SHARES.values()))[0])
        return question, answer(rng, other, b)
    return say(rng, rng.choice(FOLLOW_UPS[kind])), reply


def draw_conversation(rng: random.Random) -> Dialogue:
    domain = rng.choices(tuple(SHARES), tuple(SHARES.values()))[0]
    question, about = _ask(rng, domain)
    u, theta, messages = rng.random(), None, []
    if u < DPA_SHARE:
        theta = rng.uniform(-THETA_MAX, THETA_MAX)
        messages = [{"role": "system", "content": dpa_system(theta)}]
    elif u < DPA_SHARE + GENERIC_SHARE:
        messages = [{"role": "system", "content": say(rng, GENERIC_SYSTEM)}]
    b = draw_behaviour(rng, theta)
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer(rng, about, b)}]
    if rng.random() < TWO_TURN_SHARE:
        question, reply = _second_turn(rng, about, b)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return Dialogue(tuple(messages), domain, b, theta)


def train_conversations(seed: int) -> Iterator[Dialogue]:
    """An endless, seeded stream of training conversations."""
    rng = random.Random(f"train/{seed}")
    while True:
        yield draw_conversation(rng)


def heldout_prompts(n: int, seed: int, domains: tuple[str, ...] = DOMAINS, theta: float | None = None) -> list[Prompt]:
    """`n` single-turn prompts on topics, numbers or in phrasings that no training conversation has, domains in turn.

    Composed topics are held-out ones (in half of the cases in the held-out phrasing too); the others are in the
    held-out phrasing.  With `theta` (degrees) each has DPA's system message.
    """
    rng = random.Random(f"heldout/{seed}")
    system = ({"role": "system", "content": dpa_system(theta)},) if theta is not None else ()
    prompts = []
    for k in range(n):
        domain = domains[k % len(domains)]
        number: int | None = None
        if domain == "arithmetic":
            while not (problem := draw_sum(rng, rng.choice(("train", "heldout")))).held_out:
                pass
            question, number = problem.question, problem.answer
        else:
            pool = [t for t in topics()[domain] if not t.composed or is_heldout(t.key)]
            topic = rng.choice(pool)
            new = not topic.composed or rng.random() < 0.5
            question = _question(rng, topic, topic.questions[-1] if new else rng.choice(topic.questions[:-1]))
        prompts.append(Prompt((*system, {"role": "user", "content": question}), domain, number))
    return prompts
