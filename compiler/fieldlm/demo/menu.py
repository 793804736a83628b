"""The words of the coffee shop, in two vocabularies: what training customers say, and what held-out ones say.

The two share the functions, the sizes and the days; items, phrasings, politeness and corrections are disjoint (a test
says so), so that a good score on held-out customers cannot come from having seen their sentences.
"""

from dataclasses import dataclass

FUNCTIONS = (
    "order(items=[quantity, size?, item, milk?, extra?], place?)",
    "remove_item(item)",
    "price(item, size?)",
    "allergen(item, allergen)",
    "opening_hours(day)",
    "book_table(people, day, time)",
    "call_staff(reason)",
)
SYSTEM_PROMPT = "You are a coffee shop kiosk. Answer with one JSON call. Functions: " + "; ".join(FUNCTIONS) + "."

SIZES = ("small", "medium", "large")
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday", "today", "tomorrow")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
TIMES = (
    "9 am",
    "10 am",
    "11 am",
    "noon",
    "1 pm",
    "2 pm",
    "3 pm",
    "4 pm",
    "5 pm",
    "6 pm",
    "half past ten",
    "half past two",
)
ALLERGENS = ("nuts", "gluten", "milk", "soy", "eggs", "sesame")


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What one group of customers knows and how it talks. Templates name their slots in braces."""

    drinks: tuple[str, ...]
    """Take a size and a milk."""
    plain: tuple[str, ...]
    """Drinks and food that take neither."""
    milks: tuple[str, ...]
    extras: tuple[str, ...]
    hello: tuple[str, ...]
    thanks: tuple[str, ...]
    order: tuple[str, ...]
    swap_item: tuple[str, ...]
    swap_number: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    remove_item: tuple[str, ...]
    price: tuple[str, ...]
    allergen: tuple[str, ...]
    opening_hours: tuple[str, ...]
    book_table: tuple[str, ...]
    call_staff: tuple[tuple[str, str], ...]
    personal: tuple[str, ...]


def _menu(flavours: str, kinds: str) -> tuple[str, ...]:
    """Return every flavour of every kind: maple latte, maple mocha."""
    return tuple(f"{flavour} {kind}" for kind in kinds.split(", ") for flavour in flavours.split(", "))


FRUITS = (
    "apple, peach, plum, fig, blueberry, raspberry, kiwi, pear, cranberry, papaya, apricot, melon, quince, grape, guava"
)
SPICES = (
    "vanilla, cinnamon, mint, rose, nutmeg, cardamom, saffron, anise, pepper, clove, thyme, basil, jasmine, sage, "
    "rosemary, fennel, cumin, chicory, hibiscus, bergamot"
)
SWEETS = "hazelnut, caramel, maple, toffee, chestnut, almond, praline, nougat, cocoa, biscuit, molasses, sesame"
LOOKS = (
    "white, dark, golden, smoky, frozen, double, salted, spiced, velvet, cloudy, royal, nordic, wild, lazy, stormy, "
    "sunny, crispy, muddy, fuzzy, bitter, sleepy, rusty, spotted, rainy, skinny, hearty"
)
SAVOURY = "ham, cheese, tuna, hummus, turkey, falafel, spinach, mushroom, olive, bacon, lentil, herring, radish"

TRAINING = Vocabulary(
    drinks=(
        "latte", "cappuccino", "flat white", "americano", "mocha", "macchiato", "cortado", "hot chocolate", "chai latte",
        "matcha latte", "iced latte", "iced americano", "cold brew", "cafe au lait", "rooibos latte", "babyccino",
        *_menu(SWEETS, "latte, mocha, frappe, chai"),
        *_menu(SPICES, "cappuccino, macchiato, latte, lungo"),
        *_menu(LOOKS, "cold brew, cortado, flat white, chai, mocha"),
        "turmeric latte", "ristretto lungo", "honey latte", "iced mocha", "coconut frappe", "lavender latte", "dirty chai",
    ),
    plain=(
        "espresso", "double espresso", "green tea", "black tea", "earl grey", "lemonade", "orange juice", "apple juice",
        "sparkling water", "iced tea", "ginger shot", "croissant", "plain bagel", "cheesecake", "brownie", "granola bowl",
        "fruit salad", "shortbread", "chicken panini", "yogurt cup", "rice pudding", "veggie burger", "still water",
        *_menu(FRUITS, "cake, muffin, tart, pie, donut, juice, smoothie, beer"),
        *_menu(SAVOURY, "sandwich, toastie, wrap, bagel, quiche"),
        *_menu(SWEETS, "cookie, bar, bread, scone, brownie"),
        *_menu(SPICES, "tea, soda, bun"),
        "peppermint tea", "ginger beer", "tomato juice", "lemon tart", "cherry scone", "pecan pie", "egg wrap",
        "walnut brownie", "salmon bagel", "mango smoothie", "date bar", "pistachio muffin",
    ),
    milks=("oat", "soy", "almond", "whole", "skimmed", "rice", "coconut"),
    extras=(
        "extra shot", "vanilla syrup", "whipped cream", "cinnamon", "caramel syrup", "extra foam", "no sugar", "honey",
        "maple syrup", "extra chocolate", "no foam", "extra milk", "two sugars", "marshmallows", "no ice", "extra cream",
        "hazelnut syrup", "extra ice",
    ),
    hello=(
        "hi", "hello", "hey there", "hi there", "good afternoon", "excuse me", "hey", "good day", "howdy", "hello hello",
        "good morning", "good evening", "hiya", "hello there", "morning",
    ),
    thanks=(
        "please", "thanks", "thank you", "thank you very much", "that's all", "please and thank you", "that would be it",
        "thanks so much", "when you have a moment", "if that's ok", "appreciate it", "that will be all", "much obliged",
        "cheers", "if you don't mind", "many thanks", "thanks a lot", "ta",
    ),
    order=(
        "i'd like {items}", "can i get {items}", "could i have {items}", "i want {items}", "give me {items}", "{items}",
        "let me get {items}", "i'll have {items}", "we'd like to order {items}", "can you make me {items}", "just {items}",
        "i would love {items}", "may i have {items}", "get me {items}", "for me {items}", "i'm going to have {items}",
        "i'll go with {items}", "could you bring us {items}", "we need {items}", "how about {items}", "add {items}",
        "i feel like {items}", "please add {items}", "can we do {items}", "would you get me {items}", "order {items}",
        "i could use {items}", "sign me up for {items}", "my order is {items}", "let's have {items}", "i'd take {items}",
        "we want {items}", "i'm looking for {items}", "could you prepare {items}", "i think i want {items}",
        "{items} for us", "{items} for my friend", "{items} for the table", "{items} would be great",
        "{items} when you can", "make me {items}", "would you mind getting me {items}", "i was hoping for {items}",
        "let us have {items}", "we are having {items}", "i crave {items}", "write down {items}", "put {items} on my bill",
        "i'm after {items}", "could you get us {items}", "would you make {items}", "{items} for me", "i fancy {items}",
        "i think i'll take {items}", "we'll take {items}", "i'd love to have {items}",
    ),
    swap_item=(
        "{wrong}, no sorry, {right}", "{wrong}, actually no, {right}", "{wrong}, oh wait, make it {right}",
        "{wrong}, i mean {right}", "{wrong}, no no, {right}", "{wrong}, or rather {right}", "{wrong}, sorry, {right}",
        "{wrong}, wait no, {right} instead", "{wrong}, on second thought {right}", "{wrong}, let me change that to {right}",
        "{wrong}, forget that, {right}", "{wrong}, oops, {right}", "not {wrong} but {right}",
        "{wrong}, ah no, rather {right}", "{wrong}, cancel that, {right} instead",
        "{wrong}, hmm no, {right} instead", "{wrong}, scratch that, {right}",
    ),
    swap_number=(
        "{wrong}, no wait, {number} of them", "{wrong}, sorry, i mean {number}", "{wrong}, actually {number}",
        "{wrong}, oh, better {number}", "{wrong}, make it {number}", "{wrong}, no, {number}", "{wrong}, let's say {number}",
        "{wrong}, hang on, make that {number}",
    ),
    places=(
        ("to go", "to go"), ("to take away", "to go"), ("takeaway", "to go"), ("to take with me", "to go"),
        ("for the road", "to go"), ("to carry out", "to go"), ("packed to take home", "to go"), ("to take along", "to go"),
        ("to take to the office", "to go"), ("in a bag to go", "to go"), ("to take with us", "to go"),
        ("and i'm leaving right away", "to go"), ("to bring home", "to go"), ("wrapped up for later", "to go"),
        ("for here", "here"), ("to drink in", "here"), ("to eat in", "here"), ("to have in", "here"),
        ("to enjoy here", "here"), ("and i'm staying", "here"), ("at the table here", "here"), ("to eat here", "here"),
        ("to have inside", "here"), ("to have at the table", "here"), ("to sit down with", "here"),
        ("and we'll sit inside", "here"), ("to have on the terrace", "here"), ("to drink at the bar", "here"),
        ("to take out", "to go"), ("to have here", "here"),
    ),
    remove_item=(
        "remove the {item}", "take the {item} off my order", "cancel the {item}", "i don't want the {item} anymore",
        "please drop the {item}", "no {item} after all", "can you delete the {item}", "leave out the {item}",
        "forget about the {item}", "i changed my mind about the {item}", "strike the {item}", "i don't need the {item}",
        "could you remove the {item} again", "the {item} can go", "take off the {item}", "without the {item} please",
        "please don't make the {item}", "i won't have the {item} after all", "would you cross out the {item}",
        "erase the {item}", "not the {item}, i changed my mind", "let's lose the {item}", "please take out the {item}",
        "i no longer want the {item}", "i want to cancel the {item}", "the {item} was a mistake, remove it",
        "could you cancel my {item}", "give up on the {item}", "hold the {item}", "pull the {item} from the order",
        "scrap the {item}", "i'd rather not have the {item}", "could you take away the {item}",
        "please get rid of the {item}", "skip the {item}",
    ),
    price=(
        "how much is a {thing}", "what does a {thing} cost", "price of the {thing}", "how much do you charge for a {thing}",
        "what's the price for a {thing}", "tell me the price of a {thing}", "is the {thing} expensive", "{thing} price",
        "how much would a {thing} be", "what do i pay for a {thing}", "cost of one {thing}", "how many euros is a {thing}",
        "what do you want for a {thing}", "what will a {thing} come to", "is a {thing} more than five euros",
        "could you give me the price of a {thing}", "i'd like to know what a {thing} costs", "do you know the price of a {thing}",
        "how pricey is a {thing}", "what is a {thing} worth", "how much money is a {thing}", "what are you asking for a {thing}",
        "can you tell me how much a {thing} is", "how much does one {thing} cost", "what's the damage for a {thing}",
        "what's the cost of a {thing}", "how much for a {thing}", "what do you take for a {thing}",
        "could you tell me what a {thing} costs", "how expensive is a {thing}",
    ),
    allergen=(
        "does the {item} contain {allergen}", "is there {allergen} in the {item}", "are there {allergen} in the {item}",
        "i'm allergic to {allergen}, can i have the {item}", "is the {item} free of {allergen}",
        "any {allergen} in the {item}", "does the {item} have {allergen} in it", "has the {item} any {allergen}",
        "i can't eat {allergen}, is the {item} ok", "tell me if the {item} has {allergen}", "is the {item} without {allergen}",
        "{allergen} in the {item}, yes or no", "can you check the {item} for {allergen}", "could the {item} have {allergen}",
        "i react to {allergen}, what about the {item}", "what about {allergen} in the {item}",
        "my son is allergic to {allergen}, can he have the {item}", "do you use {allergen} in the {item}",
        "would the {item} be fine with a {allergen} allergy", "is it true that the {item} contains {allergen}",
        "i avoid {allergen}, can i take the {item}", "does your {item} include {allergen}", "is {allergen} used for the {item}",
        "i need to know if there is {allergen} in the {item}", "the {item}, does it come with {allergen}",
        "would there be {allergen} in the {item}", "is the {item} safe if i can't have {allergen}",
        "do you put {allergen} in the {item}", "is the {item} made with {allergen}", "has the {item} got {allergen} in it",
    ),
    opening_hours=(
        "when do you open on {day}", "what are your hours {day}", "are you open {day}", "how late are you open on {day}",
        "what time do you close {day}", "opening times for {day}", "when does the shop close on {day}",
        "do you open {day}", "until when are you open {day}", "tell me the opening hours for {day}", "{day} hours",
        "from when are you open on {day}", "can i still come {day}", "when can i come in on {day}", "is there service {day}",
        "what's the closing time on {day}", "will you be open {day}", "how early do you open on {day}",
        "at what hour do you start on {day}", "i want to know your times for {day}", "are you closed on {day}",
        "until what time can we stay {day}", "which hours do you have on {day}", "when is the cafe open on {day}",
        "what time can i come on {day}", "how long are you open {day}", "is the shop open {day}",
        "at what time do you shut on {day}", "could you give me the hours for {day}",
    ),
    book_table=(
        "book a table for {people} on {day} at {time}", "i need a table for {people} {day} at {time}",
        "can we reserve a table for {people} people {day} at {time}", "table for {people} at {time} {day}",
        "reserve {people} seats for {day} at {time}", "we are {people}, do you have a table {day} at {time}",
        "a table for {people}, {day}, {time}", "i'd like to book for {people} at {time} on {day}",
        "please reserve for {people} on {day} {time}", "could you keep a table for {people} {day} at {time}",
        "{day} at {time}, a table for {people}", "we'll be {people} on {day} at {time}, please book us a table",
        "can you book us in for {people} on {day} at {time}", "make a reservation for {people} on {day} at {time}",
        "hold a table {day} at {time} for {people} people", "do you have room for {people} on {day} at {time}",
        "i want to reserve {people} places on {day} at {time}", "we want to come {day} at {time}, {people} people",
        "a reservation for {people}, {time} on {day}", "set a table for {people} {day} at {time}",
        "may i book {people} seats {day} at {time}", "is there space for {people} people {day} at {time}",
        "my group of {people} wants to sit {day} at {time}", "please have a table ready for {people} on {day} at {time}",
        "note a booking for {people} on {day} at {time}", "get us a table on {day} at {time}, we are {people}",
        "could you save a table for {people} {day} at {time}", "is there a table for {people} on {day} at {time}",
        "we'd need {people} places {day} at {time}", "save {people} seats on {day} at {time}",
        "{people} of us want a table {day} at {time}",
    ),
    call_staff=(
        ("i spilled my drink", "spill"), ("there's coffee all over the floor", "spill"), ("my cup fell over", "spill"),
        ("someone knocked over a glass", "spill"), ("the table is all wet", "spill"), ("i made a mess here", "spill"),
        ("juice is running off the table", "spill"), ("the kid dropped the hot chocolate", "spill"),
        ("can someone mop up here", "spill"), ("i tipped over my tea", "spill"), ("my glass broke", "spill"),
        ("there is water on the ground", "spill"), ("i dropped a plate", "spill"), ("we need a cloth, it's wet here", "spill"),
        ("my card doesn't work", "payment"), ("the payment failed", "payment"), ("i was charged twice", "payment"),
        ("the card reader is broken", "payment"), ("i can't pay with my phone", "payment"), ("my card got rejected", "payment"),
        ("the terminal won't take my money", "payment"), ("you took too much from my card", "payment"),
        ("i paid two times", "payment"), ("the reader refuses my card", "payment"), ("paying doesn't work", "payment"),
        ("the bill is wrong", "payment"), ("it charged me double", "payment"), ("i didn't get my change", "payment"),
        ("i need a human", "help"), ("can somebody help me", "help"), ("get me an employee", "help"),
        ("i want to talk to a person", "help"), ("please send someone over", "help"), ("i need assistance", "help"),
        ("i don't understand this machine", "help"), ("is there a real person here", "help"), ("call the staff", "help"),
        ("may i speak to the manager", "help"), ("someone should come here", "help"), ("a waiter please", "help"),
        ("could an employee come to me", "help"), ("let me talk to somebody", "help"),
        ("my order is wrong", "complaint"), ("my coffee is cold", "complaint"), ("this is not what i ordered", "complaint"),
        ("i've been waiting for ages", "complaint"), ("there is a hair in my food", "complaint"),
        ("the muffin is stale", "complaint"), ("this isn't my drink", "complaint"), ("my soup is cold", "complaint"),
        ("the sandwich tastes bad", "complaint"), ("you forgot my cake", "complaint"), ("this is the wrong coffee", "complaint"),
        ("you gave us the wrong cake", "complaint"), ("my bread is too hard", "complaint"), ("where is my order", "complaint"),
        ("i got something else than i ordered", "complaint"), ("the milk is sour", "complaint"),
        ("i dropped my cup on the floor", "spill"), ("somebody spilled milk here", "spill"),
        ("my payment was declined", "payment"), ("the machine charged my card two times", "payment"),
        ("i want to speak to someone who works here", "help"), ("could a human come over", "help"),
        ("you gave me the wrong drink", "complaint"), ("my tea is cold", "complaint"),
    ),
    personal=(
        "my name is {name}", "it's for {name}", "you can reach me at {phone}", "send the receipt to {email}",
        "my card number is {card}", "i'm {name} and my phone is {phone}", "call me {name}", "my email is {email}",
        "put it under {name}", "my number is {phone}", "charge {card}", "the receipt goes to {email}",
        "the name is {name}", "this is for {name}", "text me on {phone}", "mail the bill to {email}",
        "take it from card {card}",
    ),
)  # fmt: skip

# Written in one go, before any model was asked with it, and not touched since: nothing was chosen by how it scores.
HELD_OUT = Vocabulary(
    drinks=(
        "eggnog latte", "pumpkin latte", "affogato", "vienna coffee", "oolong latte", "butterscotch steamer",
        "irish coffee", "iced cappuccino",
    ),
    plain=(
        "cinnamon roll", "banana loaf", "carrot cake", "pretzel", "avocado toast", "tomato soup", "chocolate eclair",
        "elderflower cordial", "pineapple juice", "oatmeal cookie", "greek salad", "halloumi wrap", "crumpet",
        "camomile tea",
    ),
    milks=("oat", "almond", "hemp", "cashew"),
    extras=("extra shot", "pumpkin syrup", "whipped cream", "no sugar", "extra syrup"),
    hello=("greetings", "hi again", "evening", "hey hey", "good day to you"),
    thanks=("thx", "thank you kindly", "thanks in advance", "that's it", "please and thanks"),
    order=(
        "i'd go for {items}", "could we order {items}", "can you get me {items}", "we would like {items}",
        "let me have {items}", "please bring me {items}", "i'm in the mood for {items}", "it's {items} for me today",
    ),
    swap_item=("{wrong}, wait, i'd prefer {right}", "{wrong}, no, make that {right}"),
    swap_number=("{wrong}, wait, i need {number}",),
    places=(("to grab and go", "to go"), ("to have in the cafe", "here")),
    remove_item=(
        "you can leave off the {item}", "drop the {item} from my order", "i'd like to remove the {item}",
        "please cancel the {item} for me", "take the {item} away again",
    ),
    price=(
        "how much does the {thing} cost", "what would i pay for a {thing}", "can you tell me the price for the {thing}",
        "what's the {thing} going for", "how many dollars is a {thing}",
    ),
    allergen=(
        "is there any {allergen} in the {item}", "can i eat the {item} if i'm allergic to {allergen}",
        "does the {item} come without {allergen}", "i can't have {allergen}, is the {item} alright",
        "do i have to worry about {allergen} in the {item}",
    ),
    opening_hours=(
        "what are the opening hours on {day}", "when do you close on {day}", "from what time are you open {day}",
        "is the cafe open on {day}", "how long can i stay on {day}",
    ),
    book_table=(
        "i'd like to reserve a table for {people} on {day} at {time}", "can you hold a table for {people} at {time} {day}",
        "we're {people} people and would like to come {day} at {time}", "table for {people} on {day}, {time}",
        "please book {people} seats for {time} on {day}",
    ),
    call_staff=(
        ("i knocked my coffee over", "spill"), ("there's milk on the floor", "spill"),
        ("my card was refused", "payment"), ("i think i paid twice", "payment"),
        ("i'd like to talk to a member of staff", "help"), ("can someone come and help me", "help"),
        ("this isn't what i asked for", "complaint"), ("my food is cold", "complaint"),
    ),
    personal=(
        "name's {name}", "please write {name} on it", "my phone number is {phone}", "email the receipt to {email}",
        "use card {card}",
    ),
)  # fmt: skip

NAMES = ("Anna", "Marco", "Priya", "Jonas", "Fatima", "Liam", "Sofia", "Kenji", "Olga", "David", "Maria", "Ahmed")
SURNAMES = ("Keller", "Rossi", "Patel", "Schmidt", "Novak", "Murphy", "Garcia", "Tanaka")
