"""Words for redaction: common first names, and everyday words that are no names though they may stand where one would.

English first, with what is common in German, French, Spanish, Italian, Dutch, Portuguese, Polish and beyond.

A first name that is also something one orders, wants or dates things with (Jasmine, Basil, Earl, Rose, April, Will) is
left out of FIRST_NAMES: it is found only where it is introduced as a name.
"""

_FIRST_NAMES = """
aaron abigail adam adrian ahmed aisha alan albert alejandro alex alexander alexandra
alexis alice alicia ali alison allison amanda amelia amir amit amy ana andre andrea andreas andrew angela angelina
anita anja anna anne annette annie anthony anton antonio arjun arthur ashley astrid aurora ava barbara beatrice ben
benjamin bernard beth betty bianca birgit bob bobby boris brandon brenda brian bridget bruce bruno bryan caleb
cameron camila carl carla carlos carmen carol caroline catherine cecilia chantal charles charlie charlotte chloe
chris christian christina christine christopher claire clara claudia clemens colin connor craig cynthia daisuke
daniel daniela danielle dave david deborah denise dennis derek diana diego dieter dmitri dominic donald donna
dorothy douglas dylan edith eduardo edward edwin eileen elaine elena eli elias elijah elisabeth elizabeth ella ellen
elsa emil emily emma eric erica erik erin ethan eva evelyn fabian fatima felix fernando fiona florian frances
francesca francis francisco frank franz fred frederick frieda gabriel gabriela gareth gary george georgia gerald
gerhard giovanni giulia gloria gordon greg gregory greta guillermo günter gustav hannah hans harold harry hassan
heather heidi heinrich helen helena helga henrik henry hiroshi holger howard hugo ian ibrahim ines ingrid irene
isaac isabel isabella ivan jacob jacqueline jakob james jamie jan jane janet janine jason javier jean jeff jeffrey
jennifer jenny jeremy jerome jerry jesse jessica jim jimmy joan joanna joe joel johan johanna johannes john johnny
jonas jonathan jorge jose josé josef joseph joshua juan judith julia julian juliana julie jürgen kai karen karim
karin karl kate katharina katherine kathleen kathy katie katrin keith kelly ken kenji kenneth kevin khalid kim klaus
kristen kristin kurt kyle lars laura lauren laurence lea leah leila lena leo leon leonard leonardo leslie liam linda
lisa logan lorenzo louis louise luca lucas lucia lucy luis luisa lukas luke lydia magdalena manuel marc marcel marco
marcus margaret maria mariam marie marina mario marion marta martha martin martina mary mateo mathias matt matteo
matthew matthias max maya megan mehmet mei melanie melissa mia michael michaela michelle miguel mike mila milan
miriam mohamed mohammed moritz muhammad nadia nancy naomi natalia natalie natasha nathan nathaniel nicholas nick
nicolas nicole niklas nikolai nils nina noah noor nora norbert oliver olivia omar oscar oskar otto pablo pamela
patricia patrick paul paula pauline pedro peggy peter petra philip philipp phillip pierre priya rachel rafael rahul
ralf ralph ramon raphael raquel ravi raymond rebecca regina renate ricardo richard rita rob robert roberto roger
roland ronald rosa rosie roxanne ruth ryan sabine sabrina sally sam samantha samir samuel sandra sanjay sara sarah
sasha sebastian sergei sergio shannon sharon shaun sheila silvia simon simone sofia sophia sophie stefan stefanie
stella stephan stephanie stephen steve steven stuart sunita susan susanne suzanne svenja sven sylvia takashi tamara
tanja tanya tariq ted teresa theodore theresa thomas tim timothy tina tobias todd tom tommy tony tracy trevor tyler
ulrich ursula uwe valentina valerie vanessa vera veronica vicky viktor vikram vincent vivian vladimir walter wanda
wayne wendy werner wilhelm william wolfgang xavier yasmin yuki yusuf yvonne zachary zoe
abdul abdullah achim adèle agata agnes agnès agnieszka aicha aiko akira aleksandra alessandra alessandro alessia
alfredo alfonso alma álvaro amara amina ananya andreia andrés andrzej aneta anika anil annika anke ansgar antje
antoine antónio anton arianna armin arnaud artur arturo asha asif astrid augusto aurélie axel ayşe bartosz bastian
beata beatriz begoña benedikt benoît bernd bettina bilal björn bogdan britta camille carina carlotta carsten cécile
céline cesare chiara chinedu chiamaka christoph christophe clémence clément consuelo cristina cristóbal cyril
dagmar damien dario dawid deepak delphine denis detlef diogo dirk dolores dominik dominique domenico dorota edda edgar
edoardo ekaterina elif élodie emiliano emilio emine emre enrico enrique ernst esperanza esteban étienne eugenia
eusebio ewa fatma federica federico fernanda ferdinand filip filipe filippo florence fátima françois françoise
frédéric friederike fritz fumiko gael gaetano gaspard geneviève gennaro gérard gerda giacomo gianni gilles giorgio
giuseppe gonzalo grégoire grzegorz guadalupe guilherme guido gunnar håkan halina hamza haruto hatice heiko heike heinz
hélène hendrik henri hermann hilde horst hubert hugues ignacio ilaria ilse imran inês inés inge ingo irina irma isabelle
ivana ivo iwona jacek jacques jadwiga jakub jan-willem jarosław jasmin javiera jeroen jérôme jesús joachim joão joaquim
joaquín jochen johann jolanta joost jordi jörg jules julien jutta kacper kamil karol karolina katarzyna kaveh kenta
kerstin kirsten klara konrad kofi krzysztof kwame laszlo lászló laetitia larissa léa leïla lieke lorena lothar loïc
lucie lucía ludovic ludovica ludwig lutz luuk maarten maciej maëlys magda maja małgorzata manfred manon manuela
marcela marcello marcin marek margarida margot mariana marianne marija marijke marlene massimo mathieu mathilde matilde
matteus maurizio máximo mehdi meike mercedes michał michel mihai mikael mirjam mirosław monika mónica monique montserrat
mustafa nadine natasza nathalie ngozi niels niko nikita nuno octavio ola olaf olga olivier omer oksana otto-karl
oumar ousmane pascal pascale paola paolo pavel pawel paweł pawan pénélope piet pieter pilar piotr priscilla quentin
rafał rafaela raimund rainer rajesh ramona raúl reinhard renata renato rémi rené rocío rodrigo rolf romain rosalía
rosario rüdiger rui ruud sakura salma salvatore sandrine sanne saskia sébastien serge sergey sevgi sieglinde sigrid
sílvia siobhán sjoerd solène sophia-marie stanisław stéphane stéphanie sven-erik svetlana sylvain sylvie szymon tadeusz
tatiana tatjana teodora thandiwe thérèse thiago thierry thomasz thorsten tiago tiziana tomás tomasz torben torsten
torbjörn udo ulrike umberto uta valérie vasco věra veronika vincenzo virginie viviana volker waltraud wiebke wiesław
willem wilma wim wojciech xiulan ximena yannick yiğit youssef yves zbigniew zdeněk zeynep zofia
"""

_NOT_NAMES = """
a about actually after afternoon again all allergic almost already also always am an and another any anyone anything
around as asking at away back because before being big birthday black both breakfast brunch but by call can cancel
cancelling cash change changing check christmas cold coming correct curious dairy decaf deciding delivery dessert
different dine dinner done double each early easter eight either else enough evening every everyone everything extra
fine first five four free fresh friday friend from full getting glad gluten going gonna good great grande guest
guests half happy have having he heading her here him his hoping hot how hungry i ice iced if in instead interested
is it its january february march april may june july august september october november december just keto kids
lactose large last late later leaving less like likely little looking lot lunch making many maybe me medium meeting
midnight milk mine monday more morning most much my myself never new next nine no none noon not nothing now of off
office okay ok on once one only opening or order ordering orders other our out over paying people pick picking
pickup please possible probably quick ready really reservation ride right running same saturday seven she short sir
madam six small so some somebody someone something sorry soon starting starving still sunday supposed sure table
take takeaway takeout tall teams ten than thanks that the their them then there these they thing things thinking
thirsty this those three thursday tired to today together tomorrow tonight too toppings total trying tuesday two
under up us using vegan vegetarian venti very waiting want wanting was we wednesday week weekend well what when
which while white who whole why wondering work working would wrong yes yesterday yet you your yourself affogato
almond almonds americano apple avocado bacon bagel bagels baguette banana bar barista basil beans berry biscuit
blueberry bowl bread brew brownie brownies bun bunch burger burrito butter cafe café cake cakes camomile cappuccino
cappuccinos caramel card cardamom carrot chai cheese cheesecake cherry chicken chocolate cinnamon coconut cocoa
coffee coffees cola cookie cookies cortado cortados cream cream croissant croissants cup cups danish doppio donut
donuts doughnut drink drinks earl egg eggs english espresso espressos flat food foam frappe frappuccino frappé fruit
ginger glass granola grande green grey ham hazelnut herbal honey irish jam jasmine juice ketchup kombucha latte
lattes lemon lemonade lungo macchiato madeleine mango maple margherita marshmallow matcha mayo mint mocha mochas
muesli muffin muffins mug mushroom napkins nitro nutmeg nuts oat oats olive onion orange oreo panini pastries pastry
peach peanut pecan pepper peppermint pesto pie pistachio plain porridge pot pretzel pumpkin quiche raspberry
ristretto rooibos rose rosemary saffron sage salad salmon salt sandwich sandwiches sauce scone scones shake shot
shots skimmed smoothie snack soda soup soy spice spiced sprinkles straw strawberry sugar sweet sweetener syrup tea
teas toast toastie tomato tuna turkey turmeric vanilla waffle waffles walnut water whip whipped wrap yogurt yoghurt
mr mrs ms dr prof madam herr herrn frau monsieur madame señor señora signor signora senhor senhora
tell ask could did does has had how's let's next said says should thank today's will policy office
address number phone email order's menu special machine robot kitchen bathroom delicious lovely perfect awesome nice
müde hungrig durstig fertig allergisch vegetarier vegetarierin veganer veganerin krank spät neu allein zufrieden
sicher bereit satt froh traurig gespannt zwei drei vier fünf sechs sieben acht neun zehn alle alles heute morgen gestern
jetzt später hier dort mich dich uns euch sie ihn ihr mir dir beide jeden jeder kinder freunde gäste montag dienstag
mittwoch donnerstag freitag samstag sonntag abend mittag frühstück kaffee tee milch zucker wasser kuchen torte brot
brötchen und oder bitte danke ohne mit ein eine einen der die das den dem
fatigué fatiguée allergique pressé pressée prêt prête désolé désolée content contente végétarien végétarienne végane
deux trois quatre cinq demain aujourd'hui maintenant emporter moi toi nous vous eux tous toutes lundi mardi mercredi
jeudi vendredi samedi dimanche midi soir matin café thé lait sucre eau gâteau salade merci bonjour un une le la les et
cansado cansada alérgico alérgica listo lista vegano vegana vegetariano vegetariana mañana hoy ahora llevar aquí dos
tres cuatro cinco todos todas mí ti nosotros lunes martes miércoles jueves viernes sábado domingo desayuno cena leche
azúcar agua tarta ensalada gracias hola el los las una y de
stanco stanca allergico allergica pronto pronta favore domani oggi adesso due quattro cinque tutti tutte me te noi voi
lunedì martedì mercoledì giovedì venerdì sabato domenica colazione cena latte zucchero acqua torta insalata grazie ciao
moe klaar morgen vandaag nu later hier daar twee drie vier iedereen allemaal mij jou ons maandag dinsdag woensdag
donderdag vrijdag zaterdag zondag ontbijt koffie thee melk suiker taart dank hallo een het de en
cansado pronto alérgico amanhã hoje agora dois três quatro todos mim você nós obrigado obrigada olá um uma o os as e
"""

_PRODUCTS = """
bloody mary, virgin mary, tom collins, john collins, shirley temple, arnold palmer, roy rogers, harvey wallbanger,
jack daniel's, jack daniels, jim beam, johnnie walker, captain morgan, don julio, jose cuervo, stella artois,
san miguel, samuel adams, sam adams, dr pepper, dr. pepper, mr pibb, ben & jerry's, ben and jerry's, aunt jemima,
uncle ben's, granny smith, pink lady, earl grey, lady grey, victoria sponge, caesar salad, cobb salad, eggs benedict,
benedict eggs, peach melba,
pavlova, croque madame, croque monsieur, margherita, charlotte russe, tarte tatin, crêpe suzette,
crêpes suzette, beef wellington, oysters rockefeller, general tso, dom pérignon, veuve clicquot, moët & chandon,
marie biscuit, marie biscuits, sloppy joe, sloppy joes, jenny craig, betty crocker, famous amos, mary jane, pro max,
prince charles, black forest, sara lee, wendy's, denny's, hardee's, papa john's, trader joe's, peter pan,
king charles, queen victoria, jerry's, lloyd's, martini rossi, ramos gin fizz, moscow mule, dark and stormy,
st. germain, ricard, frangelico
"""
_PARTICLES = "de van der den ten ter von zu da di del della dos do la le el al bin ibn af av"

FIRST_NAMES = frozenset(_FIRST_NAMES.split())
NOT_NAMES = frozenset(_NOT_NAMES.split())
PARTICLES = frozenset(_PARTICLES.split())
"""Words inside a name that are words outside it, too."""
PRODUCTS = tuple(name.strip() for name in _PRODUCTS.split(","))
"""What a menu or a shelf calls by somebody's name."""
