"""Sentences from which benchmarks/name_finder.py makes the weights of the workshop's name finder.

In PEOPLE {x} and {y} are persons; in THINGS {t} is a good, {c} a place, {k} a firm, {w} a word that nobody knows. None
of them stands in benchmarks/redaction_texts.py, by which the finder is measured.
"""


def _words(text: str) -> list[str]:
    return text.split()


PEOPLE: dict[str, tuple[str, ...]] = {
    "en": (
        "i am {x}", "I'm {x}, nice to meet you", "this is {x}", "{x} here", "hello, {x} speaking",
        "the name is {x}", "it's under {x}", "put it under the name {x}", "the booking is for {x}", "call me {x}",
        "a room for {x} and {y}", "the order is for {x}", "write {x} on the cup", "is {x} there", "is {x} at home",
        "where is {x}", "who is {x}", "do you know {x}", "have you seen {x} today", "when does {x} come back",
        "tell {x} that dinner is ready", "tell {x} i will be late", "let {x} know that we left", "remind {x} to call",
        "remind me to call {x} tomorrow", "remind me about lunch with {x}", "remind me that {x} comes at four",
        "call {x}", "please call {x} for me", "call {x} on the kitchen phone", "phone {x} now", "ring {x} back",
        "send a message to {x}", "send {x} a message", "text {x} that I am on my way", "message {x} please",
        "write an email to {x}", "email {x} about the contract", "reply to {x}", "forward it to {x} and {y}",
        "any new mail from {x}", "did {x} write back", "has {x} answered yet", "what does {x} want", "what did {x} tell you",
        "bring this to {x}", "bring {x} a coffee", "take the cup to {x}", "hand the key to {x}", "give {x} the red cup",
        "give {x} my regards", "give this letter to {x} please", "show {x} the way to the kitchen", "follow {x}",
        "go to {x}'s room", "drive {x} to the airport", "pick up {x} from school at three", "wake {x} at seven",
        "open the door for {x}", "let {x} in", "let {x} and {y} in please", "say hello to {x}", "say good night to {x}",
        "sing for {x}", "happy birthday {x}", "thank you {x}", "thanks {x}", "good morning {x}", "hi {x}", "hey {x}, come here",
        "sorry {x}, I did not mean that", "{x}, can you hear me", "{x}, your coffee is ready", "bye {x}", "welcome back {x}",
        "I talked to {x} yesterday", "I had lunch with {x}", "i am meeting {x} at noon", "we are with {x}",
        "I work with {x} and {y}", "my wife {x} will come later", "my husband {x} ordered it", "my son {x} is ill",
        "my daughter {x} likes it cold", "my friend {x} needs a chair", "our neighbour {x} has the key",
        "my doctor is {x}", "my boss {x} wants the report", "my colleague {x} and I share a desk", "my sister is called {x}",
        "our new colleague is named {x}", "the patient {x} needs water", "patient {x} in room four", "the guest is {x}",
        "mr {x} has called twice", "Mrs {x} wants to see you", "ms {x} is waiting", "Mr. {x} is late", "dr {x} is here",
        "an appointment with dr {x} on monday", "ask for {x} at the front desk", "ask {x} if he is hungry",
        "ask {x} for the key", "ask {x} when she arrives", "i want to speak to {x}", "can I talk to {x}", "connect me to {x}",
        "put me through to {x} please", "transfer the call to {x}", "i need the number of {x}", "what is the phone number of {x}",
        "what is {x}'s email address", "where does {x} live", "how old is {x}", "when is {x}'s birthday", "{x}'s birthday is in may",
        "set up a meeting with {x} at ten", "schedule a call with {x} and {y}", "cancel my meeting with {x}",
        "move the lunch with {x} to friday", "add {x} to my contacts", "delete {x} from my contacts", "invite {x} to the party",
        "invite {x} and {y} for dinner", "{x} is my brother", "{x} is not here", "{x} is on holiday", "{x} is ill today",
        "{x} has left the building", "{x} has the key", "{x} wants tea", "{x} wants a beer and {y} wants water",
        "{x} said no", "{x} says hi", "{x} told me to ask you", "{x} needs help", "{x} needs the car", "{x} would like a chair",
        "{x} will pay", "{x} will be there at nine", "{x} can't come", "{x} does not eat meat", "{x} forgot the umbrella",
        "{x} called this morning", "{x} asked for you", "{x} sent the file", "{x} works here", "{x} comes from abroad",
        "{x} is waiting for {y}", "{x} and {y} are married", "{x} or {y} will help", "{x} lost a glove", "yesterday {x} was here",
        "tomorrow {x} comes to visit", "tonight {x} cooks", "then {x} came in", "because {x} is tired", "when {x} arrives, ring",
        "if {x} asks, say no", "i think {x} is right", "I saw {x} in the hall", "I know {x} well", "i like {x}", "we miss {x}",
        "I gave the money to {x}", "the money was sent by {x}", "i sent 50 euros to {x}", "transfer 20 pounds to {x}",
        "I paid {x} twice", "the account belongs to {x}", "the card holder is {x}", "the card is in the name of {x}",
        "{x} is the owner of the account", "a payment from {x} is missing", "my landlord {x} got no rent",
        "this was signed by {x}", "signed, {x}", "regards, {x}", "best wishes {x}", "yours {x}", "love, {x}", "cheers {x}",
        "written by {x} for {y}", "your driver is {x}", "your waiter today is {x}", "{x} from accounting asked for it",
        "the report by {x} is good", "{x}'s report is late", "{x}'s coffee is cold", "this is {x}'s coat",
        "I found {x}'s phone", "take {x}'s order", "it belongs to {x}", "that seat is for {x}", "save a seat for {x}",
        "one tea for {x}, one coffee for {y}", "the tall latte is for {x}", "a cappuccino for {x} please",
        "name for the order: {x}", "name: {x}", "passenger {x}, seat 12", "visitor: {x}", "to: {x}", "from: {x}", "cc {x}",
        "attention {x}", "contact: {x}", "customer {x} complained", "the customer is {x}", "our client {x} moved",
        "ok {x}, I will do that", "of course, {x}", "Sure, {x}! Your table is ready.", "Thank you, {x}. Your order is on its way.",
        "I have told {x} that you are here.", "I called {x} for you.", "{x} has been informed.", "Okay, the message to {x} was sent.",
        "Nice to meet you, {x}!", "How can I help you, {x}?", "I could not find {x} in your contacts.",
        "Last week {x} moved into the flat above us and since then the lift has been out of order.",
        "When I came home {x} had already cooked, so we ate together and watched the news.",
        "According to {x}, the delivery should have been here on Tuesday.", "As {x} told me, the shop closes at six.",
        "The letter was addressed to {x} but it came to my house.", "Could you tell me whether {x} has paid the rent?",
        "I would like {x} to have access to my account as well.", "We need to add {x} to the insurance.",
        "My mother, {x}, is not able to walk and needs a wheelchair at the gate.",
        "Her name was {x} and she lived next to the church.", "His name is {x}, he works for the post.",
        "The teacher, Mrs {x}, wrote that our son was late.", "Please make the invoice out to {x}.",
        "I spoke with somebody named {x} on the phone who promised a refund.", "The agent {x} helped me last time.",
        "{x} used to be the owner of this restaurant before it was sold.", "{x} was born in the north and later studied law.",
        "It was {x} who broke the window, not {y}.", "Between {x} and {y} there was a dispute about the fence.",
        "After the accident {x} was taken to hospital with a broken leg.", "Nobody but {x} knows the code of the door.",
        "On Friday {x} and {y} are going to bake a cake together.", "For the last two years {x} has paid on time.",
        "The contract between {x} and {y} ends in june.", "Thanks to {x} the heating works again.",
        "the nurse gave {x} the wrong pills", "the dentist can see {x} on thursday", "my cousin {x} has a new flat",
        "my uncle {x} sold his car", "my aunt {x} is in the garden", "our landlady {x} wants the rent", "my flatmate {x} lost his key",
        "my roommate {x} is allergic to nuts", "my girlfriend {x} would like the soup", "my boyfriend {x} can't eat that",
        "my neighbour {x} is ill", "my friend {x} lost her phone", "my grandson {x} visits on sunday", "grandma {x} fell down",
        "uncle {x} is on the phone", "aunt {x} sends her love", "doctor {x} said two a day", "nurse {x} is on duty",
        "professor {x} gives the lecture", "mister {x} is at the door", "miss {x} forgot her bag", "mrs {x} called",
        "mr {x} would like to pay", "Mr {x}, thank you for your order", "dear {x}, thank you for your letter", "Dear Mr {x},",
        "Dear Mrs {x}, we received your payment", "hello mr {x}", "good evening mrs {x}", "to mr {x} in room 12",
        "the family {x} has booked two rooms", "the {x} family is here", "table for {x}, four people, at eight",
        "a reservation under {x} for two", "the reservation is under {x}", "check in for {x}", "the parcel is for {x}",
        "a parcel for {x} has arrived", "the package for {x} did not arrive", "deliver it to {x}", "leave it with {x} next door",
        "the bag belongs to {x}", "whose is it? it is {x}'s", "is that {x}", "was that {x} on the phone", "does {x} know",
        "will {x} be there", "can {x} come in", "could {x} call me", "should i tell {x}", "why is {x} angry", "how is {x}",
        "how is {x} doing", "what time does {x} finish", "what's {x} doing", "which one is {x}", "whom does {x} meet",
        "say {x} that it's done", "tell {x} to hurry", "tell {x} the code", "tell {x} we are out of milk", "ask {x} what he wants",
        "ask {x} about the bill", "ask {x} to come down", "wait for {x}", "look after {x}", "stay with {x}", "help {x}",
        "help {x} up the stairs", "meet {x} at the door", "guide {x} to gate 4", "greet {x}", "remember {x}", "forget {x}",
        "i am looking after {x} today", "i live with {x}", "i owe {x} ten euros", "i sold it to {x}", "i lent {x} my bike",
        "i'm here to see {x}", "i am here for {x}", "i have an appointment with {x}", "i got a gift from {x}",
        "i heard from {x} that you are closed", "i bought it for {x}", "i want to surprise {x}", "i married {x} in spring",
        "she is called {x}", "he is called {x}", "they call him {x}", "her surname is {x}", "my surname is {x}", "last name {x}",
        "surname: {x}", "first name {x}", "the last name is {x}", "it is spelled {x}", "signed by {x}", "approved by {x}",
        "paid by {x}", "ordered by {x}", "made by {x} and {y}", "a call from {x}", "a note from {x}", "a gift for {x}",
        "the room of {x}", "the desk of {x}", "the wife of {x}", "the son of {x}", "a friend of {x}'s", "the birthday of {x}",
        "{x}: I will be late", "{x}, {y} and i want pizza", "{x}, please", "{x} please come to the desk", "{x} wrote to me",
        "{x} just left", "{x} lost her card", "{x} lost his keys", "{x} stole my bike", "{x} got married", "{x} moved out",
        "{x} hasn't paid", "{x} doesn't like fish", "{x} isn't coming", "{x} never called back", "{x} always pays",
        "{x} should bring it", "{x} must sign here", "{x} may enter", "{x} has a question", "{x} has a fever", "{x} had the soup",
        "{x} is allergic to nuts", "{x} is my wife", "{x} is my manager", "{x} is on the phone", "{x} is asleep", "{x} is coming",
        "{x} was here", "{x} was rude to me", "{x} goes to school", "{x} takes two pills", "{x} wants to talk to you",
        "{x} here, i need help with my account", "it's {x} again", "this is {x} calling about the flat", "{x} calling for {y}",
        "speak to you soon, {x}", "sincerely, {x}", "kind regards {x}", "have a nice day, {x}", "what did you say to {x}",
        "the owner, {x}, lives abroad", "{x}, the owner, is abroad", "{x}, who lives upstairs, complained", "{x}, a nurse, saw it",
        "our guest {x} checks out today", "the guest in room 7, {x}, wants towels", "{x} and his wife are here", "{x} and her husband left",
        "{x} with two children", "{x} plus one", "old {x} is nice", "poor {x} fell", "little {x} is crying", "only {x} may enter",
        "is it for {x} or for {y}", "does {x} or {y} pay", "not {x} but {y}", "{x} instead of {y}", "both {x} and {y} said so",
        "neither {x} nor {y} came", "{x} gave {y} a ring", "{x} told {y} about it", "{x} asked {y} for money", "{x} hates {y}",
        "{x} lives with {y}", "{x} works for {y}", "did {x} pay {y}", "did {x} call", "did {x} come home", "did you meet {x}",
        "have {x} and {y} arrived", "has {x} eaten", "has anybody seen {x}", "who knows {x}", "who invited {x}", "who is with {x}",
        "when will {x} be back", "where did {x} go", "where has {x} been", "why did {x} leave", "what is {x} like", "what about {x}",
        "how tall is {x}", "how can i reach {x}", "how do i contact {x}", "i can't find {x}", "i can't reach {x}", "i don't know {x}",
        "i don't trust {x}", "i am not {x}", "i am {x}'s mother", "i'm {x}'s father", "i am {x} and this is {y}", "we are {x} and {y}",
        "{x} is eight years old", "{x} turned forty", "{x} died last year", "{x} retired in may", "{x} was my teacher",
        "{x} became chairman", "{x} won the race", "{x} lost the match against {y}", "{x} plays the piano", "{x} sings well",
        "{x} teaches maths", "{x} studies law", "{x} drives a red car", "{x} sold the house", "{x} bought a boat", "{x} opened the shop",
        "{x} signed the lease", "{x} wrote the report", "{x} answered the mail", "{x} cancelled the trip", "{x} booked the flight",
        "{x} ordered the fish", "{x} paid for lunch", "{x} left a tip", "{x} left the window open", "{x} broke the cup", "{x} found it",
        "{x} hid the keys", "{x} closed the door", "{x} started it", "{x} thinks so", "{x} knows why", "{x} lies", "{x} snores",
        "wish {x} luck", "kiss {x} for me", "hug {x}", "visit {x} on sunday", "pay {x} back", "feed {x}", "bill {x}", "page {x} please",
        "notify {x} when it is done", "inform {x}", "warn {x}", "congratulate {x}", "please inform {x} about the delay",
        "please let {x} sit here", "please seat {x} near the window", "please add {x} as a second driver", "please remove {x} from the account",
        "change the name to {x}", "the name should be {x}", "the name on the card is {x}", "issued to {x}", "in memory of {x}",
        "on behalf of {x}", "in the name of {x}", "care of {x}", "together with {x}", "thanks to {x}", "without {x}", "next to {x}",
        "behind {x}", "because of {x}", "except {x}", "by {x}", "for {x}", "with {x} and {y}", "from {x} to {y}", "{x} to {y}",
    ),
    "de": (
        "mein Name ist {x}, guten Tag", "ich bin {x}", "ich bin die {x}", "hier ist {x}", "ruf {x} an", "sag {x}, dass ich komme",
        "schick {x} eine Nachricht", "wo ist {x}", "wann kommt {x}", "ist {x} da", "bring {x} einen Kaffee", "gib {x} den Schlüssel",
        "der Tisch ist für {x}", "ein Tee für {x} bitte", "ich habe mit {x} gesprochen", "ich treffe {x} um acht", "{x} ist krank",
        "{x} hat angerufen", "{x} kommt später", "{x} und {y} sind da", "mein Freund {x} wartet", "meine Frau {x} zahlt", "Frau {x} ist da",
        "Herr {x} hat Geburtstag", "erinnere mich an den Termin mit {x}", "das gehört {x}", "danke {x}", "hallo {x}", "mit Grüßen {x}",
        "lade {x} ein", "das ist die Jacke von {x}",
    ),
    "fr": (
        "je suis {x}", "c'est {x}", "appelle {x}", "dis à {x} que j'arrive", "envoie un message à {x}", "où est {x}", "quand arrive {x}",
        "donne la clé à {x}", "un café pour {x}", "une table au nom de {x}", "j'ai parlé avec {x}", "je mange avec {x} ce soir",
        "{x} est malade", "{x} a appelé", "{x} vient demain", "{x} et {y} sont là", "mon ami {x} attend", "ma femme {x} paie",
        "madame {x} est là", "monsieur {x} est parti", "c'est le manteau de {x}", "merci {x}", "bonjour {x}", "bonsoir {x}, ça va",
        "rappelle-moi le rendez-vous avec {x}", "invite {x}",
    ),
    "es": (
        "soy {x}", "habla {x}", "llama a {x}", "dile a {x} que llego tarde", "manda un mensaje a {x}", "dónde está {x}", "cuándo viene {x}",
        "dale la llave a {x}", "un café para {x}", "una mesa a nombre de {x}", "hablé con {x}", "ceno con {x} mañana", "{x} está enferma",
        "{x} ha llamado", "{x} viene luego", "{x} y {y} están aquí", "mi amigo {x} espera", "mi mujer {x} paga", "la señora {x} está aquí",
        "el señor {x} se fue", "el abrigo es de {x}", "gracias {x}", "hola {x}", "saludos, {x}", "invita a {x}",
    ),
    "it": (
        "sono {x}", "qui parla {x}", "chiama {x}", "di' a {x} che arrivo", "manda un messaggio a {x}", "dov'è {x}", "quando arriva {x}",
        "dai la chiave a {x}", "un caffè per {x}", "un tavolo a nome {x}", "ho parlato con {x}", "ceno con {x} domani", "{x} è malato",
        "{x} ha chiamato", "{x} viene dopo", "{x} e {y} sono qui", "il mio amico {x} aspetta", "mia moglie {x} paga",
        "la signora {x} è arrivata", "il cappotto è di {x}", "grazie {x}", "ciao {x}", "saluti, {x}", "invita {x}",
    ),
    "nl": (
        "ik ben {x}", "je spreekt met {x}", "bel {x}", "zeg tegen {x} dat ik kom", "stuur {x} een bericht", "waar is {x}", "wanneer komt {x}",
        "geef de sleutel aan {x}", "een koffie voor {x}", "een tafel op naam van {x}", "ik heb met {x} gesproken", "{x} is ziek",
        "{x} heeft gebeld", "{x} komt later", "{x} en {y} zijn er", "mijn vriend {x} wacht", "mevrouw {x} is er", "bedankt {x}", "hoi {x}",
        "groeten van {x}", "de jas is van {x}",
    ),
    "pt": (
        "sou {x}", "aqui é {x}", "liga para {x}", "diz a {x} que vou", "manda uma mensagem para {x}", "onde está {x}", "quando chega {x}",
        "dá a chave a {x}", "um café para {x}", "uma mesa em nome de {x}", "falei com {x}", "vou jantar com {x}", "{x} está doente",
        "{x} ligou", "{x} vem depois", "{x} e {y} estão aqui", "o meu amigo {x} espera", "a senhora {x} chegou", "obrigado {x}", "olá {x}",
        "o casaco é de {x}", "convida {x}",
    ),
    "pl": (
        "jestem {x}", "tu {x}", "zadzwoń do {x}", "powiedz {x}, że idę", "wyślij wiadomość do {x}", "gdzie jest {x}", "kiedy przyjdzie {x}",
        "kawa dla {x}", "stolik na nazwisko {x}", "rozmawiałem z {x}", "{x} jest chory", "{x} dzwonił", "{x} i {y} są tutaj",
        "mój przyjaciel {x} czeka", "pani {x} przyszła", "pan {x} wyszedł", "dziękuję {x}", "cześć {x}", "zaproś {x}",
    ),
    "sv": (
        "jag är {x}", "det är {x}", "ring {x}", "säg till {x} att jag kommer", "skicka ett meddelande till {x}", "var är {x}",
        "när kommer {x}", "ge nyckeln till {x}", "en kaffe till {x}", "ett bord för {x}", "jag pratade med {x}", "{x} är sjuk",
        "{x} har ringt", "{x} och {y} är här", "min vän {x} väntar", "fru {x} är här", "tack {x}", "hej {x}", "hälsningar {x}",
    ),
    "cs": (
        "jsem {x}", "tady {x}", "zavolej {x}", "řekni {x}, že přijdu", "pošli zprávu {x}", "kde je {x}", "kdy přijde {x}", "káva pro {x}",
        "stůl na jméno {x}", "mluvil jsem s {x}", "{x} je nemocný", "{x} volal", "{x} a {y} jsou tady", "paní {x} přišla", "děkuji {x}",
        "ahoj {x}", "kabát patří {x}",
    ),
    "tr": (
        "ben {x}", "{x} arayın", "{x} nerede", "{x} ne zaman gelecek", "{x} için bir kahve", "{x} hasta", "{x} aradı", "{x} ve {y} burada",
        "arkadaşım {x} bekliyor", "{x} hanım geldi", "{x} bey gitti", "teşekkürler {x}", "merhaba {x}", "{x} ile konuştum",
    ),
    "ru": (
        "я {x}", "это {x}", "позвони {x}", "скажи {x}, что я иду", "отправь сообщение для {x}", "где {x}", "когда придёт {x}", "кофе для {x}",
        "столик на имя {x}", "{x} болеет", "{x} звонил", "{x} и {y} здесь", "мой друг {x} ждёт", "госпожа {x} пришла", "спасибо {x}",
        "привет {x}", "вчера видел {x}", "мою жену зовут {x}",
    ),
    "uk": (
        "я {x}", "це {x}", "подзвони {x}", "скажи {x}, що я йду", "де {x}", "коли прийде {x}", "кава для {x}", "столик на ім'я {x}",
        "{x} хворіє", "{x} дзвонив", "{x} і {y} тут", "мій друг {x} чекає", "пані {x} прийшла", "дякую {x}", "привіт {x}",
    ),
    "el": (
        "είμαι {x}", "εδώ {x}", "πάρε τηλέφωνο {x}", "πες στον {x} ότι έρχομαι", "πού είναι {x}", "πότε έρχεται {x}", "ένας καφές για {x}",
        "ένα τραπέζι για {x}", "{x} είναι άρρωστος", "{x} και {y} είναι εδώ", "ευχαριστώ {x}", "γεια σου {x}", "μίλησα με {x}",
    ),
    "ar": (
        "أنا {x}", "هذا {x}", "اتصل ب {x}", "أرسل رسالة إلى {x}", "أين {x}", "متى يأتي {x}", "قهوة من أجل {x}", "طاولة باسم {x}", "{x} مريض",
        "{x} و {y} هنا", "شكرا {x}", "مرحبا {x}", "تحدثت مع {x}", "صديقي {x} ينتظر",
    ),
}  # fmt: skip
LANGUAGES = {
    "de": ("de_AT", "de_CH", "de_LI", "de_LU"), "fr": ("fr_BE", "fr_CA", "fr_CH", "fr_DZ"), "it": ("es_AR", "fr_CH"),
    "es": ("es_AR", "es_CL", "es_CO", "es_MX"), "nl": ("nl_BE",), "pt": ("pt_PT",), "pl": ("sk_SK", "lt_LT"),
    "sv": ("is_IS", "et_EE"), "cs": ("sk_SK",), "tr": ("az_AZ", "uz_UZ"), "ru": ("bg_BG", "mk_MK"),
    "uk": ("bg_BG", "mk_MK"), "el": ("sl_SI", "en_IE"), "ar": ("ar_AA", "ar_PS", "ar_DZ"),
}  # fmt: skip
"""Language → Faker's locales whose people stand in its sentences; none of those that are measured."""
LATIN = (
    "az_AZ", "de_AT", "de_CH", "en_IE", "en_KE", "en_NG", "en_NZ", "en_PK", "en_TH", "es_AR", "es_CL", "es_CO", "es_MX",
    "et_EE", "fr_BE", "fr_CA", "fr_CH", "fr_DZ", "ga_IE", "gu_IN", "ha_NG", "ig_NG", "is_IS", "lt_LT", "lv_LV", "nl_BE",
    "or_IN", "pt_PT", "sk_SK", "sl_SI", "sw", "tw_GH", "uz_UZ", "yo_NG", "zu_ZA",
)  # fmt: skip
"""Locales whose people stand in English sentences."""
WORDS = (
    "en_US", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL", "pl_PL", "cs_CZ", "ru_RU", "uk_UA", "el_GR", "ar_AA", "az_AZ",
    "mk_MK", "la",
)  # fmt: skip
"""Locales whose everyday words stand where no name is."""
THINGS: tuple[str, ...] = (
    "a {t} please", "one {t} and two {t}", "i want {t}", "I would like the {t}", "bring the {t} to the {t}", "put {t} on the table",
    "bring me the {t}", "give me {t}", "give it to the {r}", "ask the {r} whether it is open", "tell the {r} to wait",
    "call the {r}", "call a {r}", "where is the {t}", "where is my {t}", "is the {t} ready", "is {t} in the menu", "is {r} here",
    "do you have {t}", "do you have {w}", "what is {w}", "what is {t}", "what does {w} mean", "how do you make {w}", "how much is {w}",
    "how much is the {t}", "turn on the {t}", "turn off {t}", "open {w}", "close {w}", "start {w} please", "use {w}", "install {w}",
    "I bought {w} at {k}", "my {w} is broken", "my {t} does not work", "a {w} with {t}", "one {w} please", "two {w} and a {t}",
    "the {w} was cold", "no {t} for me", "a table for {n}", "a table for {n} in {c}", "remind me to buy {t} and {t}", "buy {t} and {w}",
    "add {t} to my list", "add {w} to the list", "i live in {c}", "I am from {c}", "we drive to {c}", "take me to {c}",
    "go to the {t}", "go to {c}", "the train to {c}", "is there a train from {c} to {c}", "what time is it in {c}",
    "how far is {c}", "a hotel near {c}", "how long is the drive to {c}", "how is the traffic in {c}", "does {c} have a zoo",
    "which language do they speak in {c}", "who won between {c} and {c}", "is {c} bigger than {c}", "flights from {c} to {c}",
    "tell me about {c}", "tell me about the {t}", "anyone for {t}", "who wants {t}", "{t} for everybody", "{w} and {w}, please", "I sent money to {c}", "the shop in {c} is closed", "{c} is far away", "{c} is nice",
    "I work for {k}", "call {k}", "{k} sent me a bill", "the offer of {k}", "a letter from {k}", "I paid at {k}", "is {k} open",
    "set an alarm for {n}", "wake me at {n}", "remind me at {n}", "thank you", "thanks a lot", "hello there", "hi robot",
    "good morning everybody", "good night", "yes please", "no thanks", "I am {a}", "i'm {a}", "it's {a}", "this is {a}", "we are {a}",
    "the {t} is {a}", "{t} is {a}", "is it {a}", "that was {a}", "you are {a}", "i think it is {a}", "I like {t}", "i like {w}",
    "she likes {t}", "he wants {t}", "my {r} wants {t}", "my {r} is {a}", "the {r} said no", "{t} and {t}", "{t} or {w}", "{t} with {t}",
    "show me {t}", "show me {w} on {n}", "play {w}", "play the {t}", "stop {w}", "stop the {t}", "what is the {t} of {w}",
    "I want to cancel my {t}", "my {t} was declined", "can i use {w} here", "does {k} take {w}", "exchange {n} {w} to {w}",
    "for {t}", "under the {t}", "behind the {t}", "with {t}", "from the {t}", "to the {t}", "from monday to friday",
    "Sure! Your {t} is ready.", "I have put the {t} on the {t}.", "The {w} is on its way.", "Okay, {t} it is.", "Here is the {t}: {w}.",
    "Sorry, we have no {w}.", "The answer is {n}.", "You can find {w} in {c}.", "Our {t} is {a} today.", "Today we have {w} and {t}.",
)  # fmt: skip
GOODS = _words(
    "coffee tea water milk sugar lemonade beer wine juice bread cheese soup salad rice fish chicken cake cookie ice cream latte "
    "espresso cappuccino mocha muffin bagel sandwich burger pizza pasta noodle apple banana lemon orange cup mug glass plate "
    "spoon fork knife bowl bottle box bag book pen paper letter parcel key keys lamp light lights radio music song movie window door "
    "table chair bed desk kitchen bathroom garden garage office shelf drawer fridge oven heater fan phone charger remote "
    "battery umbrella coat shoes hat towel blanket pillow medicine aspirin newspaper card account payment transfer pin top-up "
    "invoice order ticket bill receipt report meeting appointment dinner lunch breakfast weather news alarm timer list "
    "reminder calendar email message volume temperature robot arm gripper camera battery wheel map floor corridor elevator "
    "stairs exit reception pharmacy bakery station airport hospital school museum park bar gym pool wifi password menu"
)
ROLES = _words(
    "waiter manager nurse doctor driver guard cook cleaner receptionist teacher boss mother father mom dad wife husband "
    "son daughter brother sister grandma uncle aunt friend neighbour neighbor colleague guest customer patient plumber taxi "
    "police staff chef barista cashier technician landlord team"
)
STATES = _words(
    "hungry tired cold hot sick late ready done sorry lost bored thirsty happy sad fine ok okay good bad great broken empty "
    "full open closed dirty clean wet dry dark loud quiet slow fast new old wrong right free busy here there back home "
    "allergic vegan vegetarian outside upstairs downstairs pending declined blocked stuck"
)
NUMBERS = _words(
    "two three four five six seven eight nine ten noon midnight 2 3 7 8 12 20 100 tonight tomorrow monday friday"
)
