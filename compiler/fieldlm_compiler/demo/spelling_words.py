"""Names a menu could not list: words borrowed from elsewhere, and the pieces that others are made up of."""

SYLLABLES = (
    "ba bel bri ca chi cor da del dro el fa fen gra gri ha hol in jo ka kel kra la lin lo ma mel mo na nor o pa pin "
    "pla pu qui ra ren ro sa scho shi so spa sta su ta tel tho tri tur u va ver vi wa wen wi ya zan ze zo"
)
ENDINGS = (
    "bo cke dish do el ette fer go ine ino ish ka ker la le lo ma mp na nd ne ngo nk nut ra rd ro rry ry sh ta tch "
    "te to x"
)

# Plain words, so that the model learns to spell in an answer what it only heard.
HOUSE = (
    "anchor arrow autumn badger balcony bamboo barrel beaver bishop blanket blossom bonfire border branch breeze "
    "bridge bubble buffalo button cactus camel candle canyon captain carpet castle cavern cedar champion chapel "
    "circus cobalt comet compass copper coral cottage cotton cousin cradle crystal curtain dancer daisy desert "
    "diamond dolphin dragon driver eagle echo elephant ember emerald engine express falcon farmer feather festival "
    "fiddle flamingo forest fountain galaxy gallery garden gentle giant glacier goblin gravel guitar hammer harbour "
    "harvest hazel heron hollow horizon hunter island ivory jacket jungle kettle kingdom ladder lantern legend lily "
    "lion lobster lotus magnet marble market meadow mermaid meteor midnight mirror monkey monsoon morning mountain "
    "nectar needle ocean olympic onyx orchid otter oyster palace panther paper parade parrot pebble pelican penguin "
    "pepper piano pigeon pilot pirate planet pocket poet potato prairie princess puzzle rabbit rainbow raven ribbon "
    "river robin rocket ruby saddle sailor sapphire scarlet season shadow shepherd silver silk slipper sparrow "
    "spider spring squirrel stadium starlight station stone summer sunset swallow temple theatre thunder tiger "
    "timber tornado tower trumpet tulip tunnel turtle umbrella valley velour village violet violin volcano wagon "
    "warrior waterfall whale whisper willow window winter wizard wolf zebra zeppelin bacon squash cabbage lettuce "
    "onion garlic parsley curry noodle dumpling pudding porridge custard jelly marmalade ravioli risotto burrito "
    "taco nacho falafel couscous paprika mustard mayonnaise vinegar syrup tofu shrimp"
)
