"""The words of the coffee shop, in three vocabularies: of training customers, of held-out ones and of strangers.

They share the functions, the sizes and the days; items, phrasings, politeness and corrections are disjoint (a test says
so), so that a good score cannot come from having seen the sentences. Held-out items are new dishes made of known kinds
(a tart, a latte); strangers' items have words in them that no training customer has said of an item.
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
class MenuVocabulary:
    """What one group of customers knows and how it talks.

    Templates name their slots in braces, and put what may stand in one place between brackets: "(can|could) i have".
    """

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
    is_even: bool = False
    """Whether no phrase or word comes again before all have come; few sentences then teach more."""
    orders: int = 46  # beside 54 sentences of other kinds
    places_said: float = 0.25  # of orders
    made_up: float = 0.0
    """The share of items with a made-up or borrowed name: no menu teaches to repeat what was said, this does."""


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

TRAINING = MenuVocabulary(
    drinks=(
        "latte", "cappuccino", "flat white", "americano", "mocha", "macchiato", "cortado", "hot chocolate", "chai latte",
        "matcha latte", "iced latte", "iced americano", "cold brew", "cafe au lait", "rooibos latte", "babyccino",
        *_menu(SWEETS, "latte, mocha, frappe, chai"),
        *_menu(SPICES, "cappuccino, macchiato, latte, lungo"),
        *_menu(LOOKS, "cold brew, cortado, flat white, chai, mocha"),
    ),
    plain=(
        "espresso", "double espresso", "green tea", "black tea", "earl grey", "lemonade", "orange juice", "apple juice",
        "sparkling water", "iced tea", "ginger shot", "croissant", "plain bagel", "cheesecake", "brownie", "granola bowl",
        "fruit salad", "shortbread", "chicken panini", "yogurt cup", "rice pudding", "veggie burger", "still water",
        *_menu(FRUITS, "cake, muffin, tart, pie, donut, juice, smoothie, beer"),
        *_menu(SAVOURY, "sandwich, toastie, wrap, bagel, quiche"),
        *_menu(SWEETS, "cookie, bar, bread, scone, brownie"),
        *_menu(SPICES, "tea, soda, bun"),
    ),
    milks=(
        "oat", "soy", "almond", "whole", "skimmed", "rice", "coconut", "hazelnut", "barley", "sheep", "quinoa", "low-fat",
        "banana", "spelt", "warm", "cold",
    ),
    extras=(
        "extra shot", "vanilla syrup", "whipped cream", "cinnamon", "caramel syrup", "extra foam", "no sugar", "honey",
        "maple syrup", "extra chocolate", "no foam", "extra milk", "two sugars", "marshmallows", "no ice", "extra cream",
        "almond syrup", "extra sugar", "a lid", "mint syrup", "chocolate sauce", "no milk", "extra cinnamon", "lemon", "no cream",
        "extra vanilla", "sprinkles", "one sugar", "coconut syrup", "no lid", "extra butter", "berry syrup", "no whipped cream",
    ),
    hello=(
        "hi", "hello", "hey there", "hi there", "good afternoon", "excuse me", "hey", "good day", "howdy", "hello hello",
        "(hello|hi|hey|good morning) (folks|everybody|friend|again friend|all)", "(sorry|pardon me|well|right|so|um|okay)",
        "(long time no see|nice place|what a day|hi machine|dear kiosk|hey barista)",
    ),
    thanks=(
        "please", "thanks", "thank you", "thank you very much", "that's all", "please and thank you", "that would be it",
        "thanks so much", "when you have a moment", "if that's ok", "appreciate it", "that will be all", "much obliged",
        "(thanks|thank you|cheers) (a million|so much|again|friend|in any case)", "(that is|that was) (all|everything|my order)",
        "(if it's|if that is) (no trouble|possible|alright)", "(be quick|no hurry|i'm hungry|have a nice day|bye|and hurry)",
        "(i'd appreciate it|i'd be glad|you're great|great|perfect|lovely|nothing else|all good)",
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
        "(can|could|may|might) (i|we) (get|have|grab|take|try|buy) {items}", "(could|can|would|will) you (make|do|pour|fix|bring|fetch|sell) (me|us) {items}",
        "(i|we) (want|need|take|choose|desire|prefer|wish for|ask for) {items}", "(i'd|we'd) (like|want|prefer|take|love to get|rather have) {items}",
        "(i will|we will|i'm going to|we're going to|let's) (take|have|get|try|grab|order) {items}",
        "(bring|get|give|make|fetch|hand|serve|do|pass|sell|pour) (me|us) {items}", "(i'm|we're|we are|i am) (getting|having|taking|ordering|trying|thinking of|dreaming of) {items}",
        "(my|our) (order|choice|pick|usual|breakfast|lunch) (is|would be|will be) {items}", "(how about|what about|maybe|perhaps|so|then|next|first|also|today) {items}",
        "{items} for (him|her|them|my wife|my husband|my kids|my mother|the boss|three of us|everyone|our guests|my colleague|a friend)",
        "{items} (today|now|for breakfast|for lunch|to begin|as always|like yesterday|as usual|right now|quickly|first of all|for a start|to share)",
        "(it'll be|that's|make it|let it be|it should be) {items}", "(the two|both|all|the three|five) of us (want|would like|take|are having) {items}",
        "(is it possible to get|is there any chance of|would it be ok to have|do you have|do you still have|have you got) {items}",
        "(my|our) (wife|son|friend|boss|daughter|guest) (wants|would like|is having|asked for|takes) {items}",
        "(start|begin) (me|us) (with|off with) {items}", "(all|what) (i|we) (want|need) is {items}",
    ),
    swap_item=(
        "{wrong}, no sorry, {right}", "{wrong}, actually no, {right}", "{wrong}, oh wait, make it {right}",
        "{wrong}, i mean {right}", "{wrong}, no no, {right}", "{wrong}, or rather {right}", "{wrong}, sorry, {right}",
        "{wrong}, wait no, {right} instead", "{wrong}, on second thought {right}", "{wrong}, let me change that to {right}",
        "{wrong}, forget that, {right}", "{wrong}, oops, {right}", "not {wrong} but {right}",
        "{wrong}, ah no, rather {right}", "{wrong}, cancel that, {right} instead",
        "{wrong}, (no|nah|ah|oh|hmm|wait|stop|sorry), {right}", "{wrong}, (no|oh|ah|stop), (i want|give me|take|i'd rather have|better) {right}",
        "{wrong}, (instead of that|in place of that|or no|well no), {right}", "{wrong}, (replace|swap) that (with|for|by) {right}",
    ),
    swap_number=(
        "{wrong}, no wait, {number} of them", "{wrong}, sorry, i mean {number}", "{wrong}, actually {number}",
        "{wrong}, oh, better {number}", "{wrong}, make it {number}", "{wrong}, no, {number}", "{wrong}, let's say {number}",
        "{wrong}, (no|oh|ah|hmm|stop|sorry), {number}( of them| of those| in all|)", "{wrong}, (give me|i want|we want|i'll take|let it be) {number}",
        "{wrong}, (it should be|that should be|there are) {number}( of those| of them|)",
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
        ("to (take|bring|carry) (away|along|home|to work|to school|to the park|upstairs|on the bus|with me|with us)", "to go"),
        ("(and|because) (i'm|we're) (leaving|in a hurry|on the run|off to work|heading out|catching a train)", "to go"),
        ("(in a bag|in a paper cup|in a box|packed up|wrapped up|boxed up)", "to go"), ("for (the road|the train|the way|the trip|takeaway)", "to go"),
        ("to (eat|drink|enjoy|sip|finish) (here|in|inside|at the table|on the terrace|at the bar|by the window|in the garden)", "here"),
        ("(and|because) (i'm|we're|i am|we are) (staying|sitting here|not leaving|sitting inside|going to sit)", "here"),
        ("(on a plate|in a real cup|in a glass|on a tray) (here|for here)", "here"), ("to have (inside|on the terrace|by the window)", "here"),
        ("(and|because) (i'll|we'll) (have it|eat it|drink it) (at home|at work|outside|on the way|in the car|at the office)", "to go"),
        ("to (have|eat|drink|finish) (at home|at work|in the car|on the train|later|elsewhere|on the road)", "to go"),
        ("(and pack it|and wrap it|and bag it|and box it)( up| for me|)", "to go"), ("in (takeaway cups|a takeaway cup|paper bags|a doggy bag)", "to go"),
        ("(and|because) (i'll|we'll) (have it|eat it|drink it) (here|inside|at the bar|on the sofa|at our table)", "here"),
        ("to (have|eat|drink|sip|share) (at the counter|on the sofa|at our table|on the bench|while we wait|in your cafe)", "here"),
        ("(dining in|eating in|drinking in|sitting in|staying in)", "here"), ("(at|by) the (window|counter|sofa|fireplace|bar)( here|)", "here"),
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
        "(please|kindly|just|) (remove|cancel|delete|drop|cut|undo|omit|lose|discard) (the|my|that|this) {item}",
        "(can|could|would|will) you (remove|cancel|delete|drop|cut|undo|omit|take out|take off|leave out) (the|my|that) {item}",
        "(i|we) (don't|no longer|do not) (want|need|feel like|care for) (the|my|that) {item}( anymore| any more|)",
        "(no|never mind|forget|not|minus|without) (the|that|my) {item}( anymore| after all| now|)",
        "(i want|we want|i need|it would be nice) to (cancel|delete|drop|undo|take back) (the|my|that) {item}",
        "(take|get|strike|scratch|pull|knock) (the|my|that) {item} (off|out|off the list|off my bill|from the list|off again)",
        "(the|that|my) {item} (should go|isn't needed|is not wanted|can be cancelled|was wrong|has to go|can be taken off)",
        "(i|we) (ordered|took|added|picked) (the|that) {item} by mistake", "no {item}( for me| for us| today| anymore| after all|)",
        "(my|the|that) {item} is (off|no longer wanted|not for me|a mistake)( now|)", "(i|we) (decided|chose|voted) against (the|my|that) {item}",
        "(lose|bin|return|undo|forget) (my|that|this|the) {item}( again| now|)", "(on second thought|after all|sorry), no {item}( for me| for us|)",
    ),
    price=(
        "how much is a {thing}", "what does a {thing} cost", "price of the {thing}", "how much do you charge for a {thing}",
        "what's the price for a {thing}", "tell me the price of a {thing}", "is the {thing} expensive", "{thing} price",
        "how much would a {thing} be", "what do i pay for a {thing}", "cost of one {thing}", "how many euros is a {thing}",
        "what do you want for a {thing}", "what will a {thing} come to", "is a {thing} more than five euros",
        "could you give me the price of a {thing}", "i'd like to know what a {thing} costs", "do you know the price of a {thing}",
        "how pricey is a {thing}", "what is a {thing} worth", "how much money is a {thing}", "what are you asking for a {thing}",
        "can you tell me how much a {thing} is", "how much does one {thing} cost", "what's the damage for a {thing}",
        "(how much|what) (would|will|might) (a|one|the|that|your) {thing} cost( me| us| today|)", "(how much|how expensive|how dear|how costly) is (the|one|that|your) {thing}",
        "(what's|what is|tell me|give me|i need|show me) the (price|cost|charge) (of|for) (one|the|that|your) {thing}",
        "(price|cost|charge) (of|for) (a|one|the|your|that) {thing}", "(could|would|can) you (say|tell us|check|show me) (how much|what) (a|one|your) {thing} costs",
        "(do you know|i wonder|may i ask|i'd like to know) (how much|what) (a|one|the) {thing} (is|costs)", "(is|would) (a|the) {thing} (cheap|dear|costly|less than four euros)",
        "(how much money|what amount|how many euros|how many coins) for (a|one|the) {thing}",
        "(a|one|your) {thing}, (how much|what's the price|what does it cost|is it expensive)( please| now|)", "(i wonder|may i know|i'm asking) what (one|your|the) {thing} (is|costs|comes to)( here| today|)", "(what|how much) (do|will|would) you (ask|bill|collect|get)( me| us|) for (a|one|the|your) {thing}", "(what|how much) (would|does|will) (a|one|the|your) {thing} (run|leave) (me|us)( to| today|)",
        "(do i pay|will i pay|do we pay) (much|a lot|over four euros) for (a|one|the) {thing}", "(i want|i need|we want) to know the (price|cost) of (a|one|your) {thing}",
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
        "(is|are) there (some|also|maybe) {allergen} (in|inside) (the|your|that|a) {item}", "(does|will|would|might|can) (the|your|that|a) {item} (contain|have|include|hold) (any|some) {allergen}",
        "(i|we) (can't eat|mustn't eat|can't stand|have to avoid|don't eat|can't take) {allergen}, (is|would) (the|your|a) {item} (be fine|ok|fine|safe|good)( for me|)",
        "(i'm|i am|my son is|my wife is|my friend is|she is|he is) allergic to {allergen}, (what about|how about|is it in|tell me about) (the|your|a) {item}",
        "(my daughter|my friend|my mother|the baby) (can't have|can't eat|reacts to|avoids) {allergen}, is (the|your|a) {item} (fine|ok|safe|good)( for her| for him|)",
        "(tell me|check|say|find out|i wonder) (if|whether) (the|your|a) {item} (has|contains|includes|comes with) {allergen}",
        "(will i|would i|do i) (find|get|have) {allergen} in (the|your|a) {item}", "(is|was) {allergen} (in|part of|among the things in) (the|your|a) {item}",
    ),
    opening_hours=(
        "when do you open on {day}", "what are your hours {day}", "are you open {day}", "how late are you open on {day}",
        "what time do you close {day}", "opening times for {day}", "when does the shop close on {day}",
        "do you open {day}", "until when are you open {day}", "tell me the opening hours for {day}", "{day} hours",
        "from when are you open on {day}", "can i still come {day}", "when can i come in on {day}", "is there service {day}",
        "what's the closing time on {day}", "will you be open {day}", "how early do you open on {day}",
        "at what hour do you start on {day}", "i want to know your times for {day}", "are you closed on {day}",
        "until what time can we stay {day}", "which hours do you have on {day}", "when is the cafe open on {day}",
        "(when|at what time|from when|how early) (do you|does the shop|does the cafe|will you) open (on |){day}", "(when|at what time|how late) (does the shop|does the cafe|will you|does this place) (close|shut) (on |){day}",
        "(is this place|will you be|is anyone|are you guys|will the cafe be) (open|there|around) (on |){day}", "(hours|times|opening hours|schedule|business hours) (for|on) {day}",
        "(tell me|i need|show me|what are|do you know) (your|the) (hours|times|business hours|closing time) (for|on) {day}",
        "(how late|until when|how long) (can i come|can we come|may i stay|can we sit here|is the kitchen open) (on |){day}",
        "(what|which) (times|hours) (are you open|do you work|apply|count) (on |){day}", "(on |){day}, (when do you open|are you there|when do you close|what are your hours)",
        "(the|your) (times|schedule|hours) (for|on) {day}( please|)", "{day} (times|schedule|opening|closing time)",
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
        "(book|reserve|hold|keep|save|get|arrange|prepare) (a table|seats|places|space|room) for {people} (on |){day} (at|around|for) {time}",
        "(can|could|may|would) (i|we|you) (book|reserve|get|have|arrange|keep) (us a table|a table|seats|places|a spot) (on |){day} (at|around) {time} for {people}",
        "(i want|i need|we want|we need|i would like|we'd love) (a table|seats|places|a spot) for {people} (people|persons|guests|) (on |){day} at {time}",
        "(there will be|there are|we will be|we're going to be) {people} of us (on |){day} at {time}(, a table please|, book it|, can we sit|, we need a table)",
        "{day} (at|around) {time} for {people}( people| persons| guests|), (a table|book it|a reservation|reserve it)",
        "(table|seats|a reservation|booking) for {people}( guests| people|), {day} {time}",
        "{people} (people|guests|friends) (are coming|will come|want to eat) (on |){day} at {time}, (keep a table|book a table|is there room)",
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
        ("(i|we|my son|my kid|someone|my friend) (spilled|spilt|tipped over|knocked down|dropped) (the|some|a) (coffee|tea|juice|soup|cup|glass|milk|drink)", "spill"),
        ("(the|my|our) (table|floor|chair|counter|coat|seat) is (wet|sticky|dirty|soaked|covered in coffee|full of tea)( here|)", "spill"),
        ("there is (coffee|juice|water|soup|a puddle|broken glass|cream) (on the floor|everywhere|on the table|on my chair|over here)", "spill"),
        ("(we need|bring|i need|can you bring) (a mop|a cloth|a towel|napkins)( here| quickly|), (something spilled|it's wet|the cup fell)", "spill"),
        ("(wet floor|broken glass|coffee everywhere|a big mess|a puddle) (here|at our table|by the door|next to me)", "spill"),
        ("(my|the|our) (coffee|tea|drink|cup|mug|glass) (fell|went over|tipped|is all over me|broke|ran out over the table)", "spill"),
        ("(my|the|our) (card|phone|payment|voucher|bank card) (is not accepted|doesn't go through|won't work|fails|was blocked|is not read|does nothing)", "payment"),
        ("(you|the machine|the kiosk|it) (charged|billed) me (twice|double|too much|for nothing|three times|the wrong amount)", "payment"),
        ("(i|we) (can't|couldn't|am not able to) pay( here| by card| with cash| with my watch|)", "payment"), ("(i|we) (paid|was charged|got billed) (too much|double|three times|for the wrong thing)", "payment"),
        ("(the|my|our) (receipt|bill|total|change) is (wrong|missing|too high|not right)", "payment"), ("(where is|i want|give me) my (refund|money back|change|receipt)", "payment"),
        ("(i|we) (want|need|have) to (pay again|pay in cash|split the bill|get a refund)", "payment"), ("(the|your) (card reader|terminal|machine) (ate|declined|does not read|won't read) my (card|voucher|money)", "payment"),
        ("(can|could|would|will) (someone|somebody|anybody|a person|an employee|a waiter) (help|assist|come here|come to us|talk to me|explain this)( me| please|)", "help"),
        ("(i|we) (need|want) (help|a person|a waiter|some help|to see a person|to ask someone|to talk to a waiter|somebody)( here|)", "help"),
        ("(is|are) (anyone|anybody|somebody|any staff|any humans) (there|here|around|on duty|available)", "help"), ("(call|get|send|fetch|find) (me|us) (someone|a waiter|the boss|a colleague|the manager)", "help"),
        ("(how does this work|this screen is confusing|i'm lost|i can't use this|this is too complicated)", "help"),
        ("(i'd like|we'd like|i want) to (see|talk to|ask|meet) (someone|a waiter|the owner|an employee|a person)", "help"),
        ("(my|the|our|this) (coffee|soup|sandwich|latte|toast|order) (is|tastes|was) (cold|burnt|awful|sour|wrong|too salty|disgusting|raw|old)", "complaint"),
        ("(i|we) (never got|didn't get|am still waiting for|did not receive) (my|our|the) (food|drink|order|coffee|cake)", "complaint"),
        ("(this|that|it) is not (my|our) (order|coffee|drink|food|cake|cup)", "complaint"), ("(you|they|somebody) (forgot|mixed up|messed up|burned) (my|our) (order|drink|food|coffee)", "complaint"),
        ("there is (a fly|a bug|something|plastic|a stone) in (my|the|our) (coffee|soup|cake|salad|food)", "complaint"), ("(the service|this|the food|the wait) is (too slow|terrible|bad|very bad|not ok)", "complaint"),
        ("(i|we) (asked for|ordered|wanted) something else", "complaint"), ("(my|the|our) (coffee|tea|food|toast|soup) (has gone cold|isn't warm|isn't fresh|isn't good|smells bad)", "complaint"),
    ),
    personal=(
        "my name is {name}", "it's for {name}", "you can reach me at {phone}", "send the receipt to {email}",
        "my card number is {card}", "i'm {name} and my phone is {phone}", "call me {name}", "my email is {email}",
        "put it under {name}", "my number is {phone}", "charge {card}", "the receipt goes to {email}",
        "(it's|i'm|i am|call me|that's for|the order is for) {name}", "(ring|phone|reach|call) me (at|under) {phone}", "(here's|this is) my (phone|number), {phone}",
        "(my|the) (mail|address|e-mail) is {email}", "(write to|send it to|mail) {email}", "(here's my card|card number|bill it to|pay with) {card}",
    ),
    is_even=True, orders=66, places_said=0.4, made_up=0.4,
)  # fmt: skip

HELD_OUT = MenuVocabulary(
    drinks=("turmeric latte", "ristretto lungo", "honey latte", "iced mocha", "coconut frappe",
        "lavender latte", "dirty chai"),
    plain=(
        "peppermint tea", "ginger beer", "tomato juice", "lemon tart", "cherry scone", "pecan pie", "egg wrap",
        "walnut brownie", "salmon bagel", "mango smoothie", "date bar", "pistachio muffin",
    ),
    milks=("oat", "soy", "coconut", "almond"),
    extras=("extra shot", "hazelnut syrup", "whipped cream", "no sugar", "extra ice"),
    hello=("good morning", "good evening", "hiya", "hello there", "morning"),
    thanks=("cheers", "if you don't mind", "many thanks", "thanks a lot", "ta"),
    order=(
        "i'm after {items}", "could you get us {items}", "would you make {items}", "{items} for me",
        "i think i'll take {items}", "we'll take {items}", "i'd love to have {items}", "i fancy {items}",
        "put me down for {items}",
    ),
    swap_item=("{wrong}, hmm no, {right} instead", "{wrong}, scratch that, {right}"),
    swap_number=("{wrong}, hang on, make that {number}",),
    places=(("to take out", "to go"), ("to have here", "here")),
    remove_item=(
        "scrap the {item}", "i'd rather not have the {item}", "could you take away the {item}",
        "please get rid of the {item}", "skip the {item}",
    ),
    price=(
        "what's the cost of a {thing}", "how much for a {thing}", "what do you take for a {thing}",
        "could you tell me what a {thing} costs", "how expensive is a {thing}", "what would a {thing} set me back",
    ),
    allergen=(
        "would there be {allergen} in the {item}", "is the {item} safe if i can't have {allergen}",
        "do you put {allergen} in the {item}", "is the {item} made with {allergen}",
        "has the {item} got {allergen} in it",
    ),
    opening_hours=(
        "what time can i come on {day}", "how long are you open {day}", "is the shop open {day}",
        "at what time do you shut on {day}", "could you give me the hours for {day}",
    ),
    book_table=(
        "could you save a table for {people} {day} at {time}", "is there a table for {people} on {day} at {time}",
        "we'd need {people} places {day} at {time}", "save {people} seats on {day} at {time}",
        "{people} of us want a table {day} at {time}",
    ),
    call_staff=(
        ("i dropped my cup on the floor", "spill"), ("somebody spilled milk here", "spill"),
        ("my payment was declined", "payment"), ("the machine charged my card two times", "payment"),
        ("i want to speak to someone who works here", "help"), ("could a human come over", "help"),
        ("you gave me the wrong drink", "complaint"), ("my tea is cold", "complaint"),
    ),
    personal=(
        "the name is {name}", "this is for {name}", "text me on {phone}", "mail the bill to {email}",
        "take it from card {card}",
    ),
)  # fmt: skip

# All but one of their items have a word that occurs in no training item. Written in one go, before any model was asked
# with them, and not changed since. Their score was seen a few times while training customers learnt to talk in more ways,
# by function, with the place of the first wrong word in three answers.
STRANGERS = MenuVocabulary(
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
