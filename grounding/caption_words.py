"""The words by which `grounding/noun_phrases.py` reads a caption. English; what is not here is taken for a noun."""

# words that open a phrase, and that it does without
DETERMINERS = frozenset(
    """
    a an the this these those some any each every no both all half another other my our your his her its it's their whose
    several many few various different numerous multiple single same such more most
    """.split()
)
NUMBERS = frozenset(
    """
    one two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred thousand dozen dozens hundreds
    thousands
    """.split()
)
# "a couple of dogs", "a slice of pizza": the thing is what follows "of". Bowls, plates and crowds can be seen, and stay.
QUANTITIES = frozenset(
    """
    couple pair group bunch lot lots plenty number set slice piece bit type kind sort variety assortment array collection
    series selection herd flock stack pile row body part section majority amount mixture
    """.split()
)
PICTURE = frozenset(
    """
    picture photo photograph pic image snapshot shot view scene selfie portrait closeup close-up background foreground
    """.split()
)
# where in the picture; alone it is nothing, but "table top", "parking lot" and "back tire" are things
PLACES = frozenset(
    """
    top bottom left right side front back rear middle center centre corner edge end distance far way
    """.split()
)
# what has no edges, or fills the picture
EXPANSES = frozenset(
    """
    sky air water sea ocean grass snow sand dirt ground meadow beach rain fog mud sunlight sunshine daylight weather
    """.split()
)
ABSTRACT = frozenset(
    """
    area space day night morning evening afternoon dusk time winter summer spring fall season game match trip ride action
    motion progress style attempt conversation fun look trick stunt jump pose color colour shape size design life competition
    event party thing stuff use preparation position direction order wild public setting nature activity tennis soccer golf
    hockey karate name place description crouch
    """.split()
)
PRONOUNS = frozenset(
    """
    i you he she it we they me him us them himself herself itself themselves oneself mine hers theirs someone somebody
    something anyone anything everyone everything nothing nobody others ones who whom which that what there here
    """.split()
)
# these end a phrase: prepositions, conjunctions, auxiliaries and adverbs
PREPOSITIONS = frozenset(
    """
    of in on at by with without from to into onto over under above below beneath underneath beside besides between behind near
    next along alongside across through throughout against among amongst amid around about after before during for up down off
    out inside outside toward towards upon via within past like as atop per than because despite and or but nor while when
    where if so then whether since until whilst except
    """.split()
)
AUXILIARIES = frozenset(
    """
    is are was were be been being am has have had having do does did can could will would may might should must not there's
    that's he's she's isn't aren't doesn't don't
    """.split()
)
ADVERBS = frozenset(
    """
    very just almost together outdoors indoors away nearby overhead ahead forward backwards also too only again still now
    quite well alone apart upside sideways downhill uphill else ever never always often once twice even yet rather full ready
    close
    """.split()
)
LY_NOT_ADVERBS = frozenset(
    """
    family fly butterfly dragonfly jelly belly lily assembly elderly italy supply bully ugly curly woolly hilly silly lovely
    friendly lonely early daily rally dolly trolly wooly bubbly grizzly
    """.split()
)
ADJECTIVES = frozenset(
    """
    red orange yellow green blue purple pink brown black white gray grey beige tan golden gold silver colorful colourful
    colored bright dark light pale multicolored big little small large tiny huge giant tall short long wide narrow thick thin
    deep high low great massive medium enormous old young new modern ancient vintage antique older elderly early possible round flat
    sharp curved open closed empty busy crowded bare wooden metallic plastic stone glassy rocky weedy grassy snowy sandy muddy
    dusty rusty leafy woody steep lush clean dirty wet dry hot cold warm fresh ripe raw soft hard heavy fluffy furry fuzzy
    hairy shaggy beautiful pretty cute nice lovely ugly fancy plain simple happy sad funny strange weird odd real fake wild
    dead live alive asian american commercial professional industrial domestic public private sunny cloudy clear blurry shiny
    striped checkered plaid floral decorative ornate elegant first second third last main upper lower front rear back left
    right distant lone similar unusual typical nude shirtless barefoot bald good bad best
    """.split()
)
# -ing words that are things, and those that are the first half of one: "parking meter"
ING_NOUNS = frozenset(
    """
    building ceiling clothing wedding railing painting drawing carving wing ring earring string king evening morning lightning
    siding bedding stuffing frosting icing dressing topping filling stocking crossing awning opening lighting pudding duckling
    dumpling sibling sapling gosling swing spring sling clothesline thing covering molding marking writing flooring
    """.split()
)
ING_FIRST = frozenset(
    """
    parking dining living swimming cutting washing vending ironing frying sewing bowling baking sleeping shopping boxing
    skating
    """.split()
)
# participles that do not end in -ed, and words that end in -ed and are none
PARTICIPLES = frozenset(
    """
    shown seen worn made taken held hung lit laid grown driven ridden thrown eaten broken frozen torn drawn written built kept
    bent caught
    """.split()
)
ED_NOUNS = frozenset(
    """
    bed bunkbed sled shed red weed seed reed feed speed flatbed hundred moped biped
    """.split()
)
# what people and things do in captions, in the plain form; -s, -es and -ies are worked out
VERBS = frozenset(
    """
    sit stand lie lay hold ride walk run jump play pose look stare gaze watch eat drink drive fly swing hit throw catch wear
    carry pull push lean rest sleep swim surf kick reach prepare travel move make take show smile talk speak use feature
    contain graze perch hang pass wait work cook serve cut try attempt go come get put read enjoy perform brush feed hug kiss
    bite chew lick sniff gather float sail approach rush climb slide stick peek give keep let see want need begin start seem
    appear surround fill cover overlook laugh compete toss flock crouch kneel bend provide skateboard snowboard blow leap
    chase crawl dance sing dig spin twirl paddle huddle wrestle splash leave point follow turn shake lift dive bark
    """.split()
)
IRREGULAR = {
    "people": "person", "persons": "person", "children": "child", "feet": "foot", "teeth": "tooth",
    "mice": "mouse", "geese": "goose", "oxen": "ox", "sheep": "sheep", "cattle": "cattle", "police": "police",
}  # fmt: skip
