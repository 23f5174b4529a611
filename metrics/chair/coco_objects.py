"""
What captions call COCO's 80 objects: this project's own list, made for CHAIR without the official file.

A line of OBJECTS is a category: its name and, after the colon, other words for it, lower case, in the singular, of one word or two.
A word is here only if a caption that says it can hardly mean anything else: "racket" but not "plant", "kitten" but not "chicken"
(which is mostly eaten), "soccer ball" but not "baseball" (which is mostly played).
"""

OBJECTS = """
person: man, woman, boy, girl, child, kid, baby, toddler, infant, people, adult, guy, lady, gentleman, male, female,
    teenager, teen, youth, human, pedestrian, passenger, tourist, traveler, traveller, commuter, hiker, climber, camper,
    shopper, customer, spectator, onlooker, bystander, audience, crowd, player, athlete, batter, umpire, referee,
    catcher, outfielder, goalie, runner, jogger, swimmer, surfer, skier, snowboarder, skateboarder, skater, cyclist,
    bicyclist, biker, motorcyclist, rider, driver, pilot, sailor, fisherman, cowboy, jockey, farmer, chef, baker,
    waiter, waitress, bartender, vendor, worker, workman, employee, businessman, businesswoman, policeman, policewoman,
    cop, officer, firefighter, fireman, soldier, doctor, nurse, dentist, teacher, student, schoolgirl, schoolboy,
    politician, performer, dancer, musician, singer, actor, actress, artist, photographer, bride, groom, bridesmaid,
    mother, mom, father, dad, parent, grandmother, grandma, grandfather, grandpa, son, daughter, brother, sister, wife,
    husband, girlfriend, boyfriend, friend
bicycle: bike, tricycle, unicycle, mountain bike
car: automobile, sedan, suv, jeep, taxi, cab, taxicab, van, minivan, convertible, hatchback, limousine, limo, police
    car, sports car, race car, station wagon
motorcycle: motorbike, motor bike, motor cycle, moped, scooter, dirt bike
airplane: aeroplane, air plane, plane, aircraft, jet, airliner, jetliner, biplane, seaplane, jumbo jet, fighter jet
bus: minibus, school bus, tour bus, city bus
train: locomotive, tram, streetcar, monorail, train car, train engine, steam engine
truck: lorry, pickup, pickup truck, tow truck, fire truck, firetruck, fire engine, dump truck, garbage truck, food
    truck, semi truck
boat: ship, sailboat, rowboat, motorboat, speedboat, tugboat, houseboat, lifeboat, canoe, kayak, raft, ferry, yacht,
    barge, gondola, dinghy, catamaran, sail boat, row boat, motor boat, fishing boat
traffic light: stoplight, stop light, traffic signal
fire hydrant: hydrant
stop sign:
parking meter:
bench: pew, park bench
bird: seagull, gull, pigeon, dove, duck, duckling, goose, gosling, swan, hen, rooster, peacock, ostrich, emu, parrot,
    parakeet, cockatoo, macaw, canary, finch, sparrow, robin, crow, raven, owl, hawk, eagle, falcon, vulture, heron,
    egret, stork, pelican, flamingo, penguin, woodpecker, hummingbird, songbird
cat: kitten, kitty, tabby, feline
dog: puppy, pup, doggy, doggie, canine, hound, poodle, terrier, retriever, labrador, beagle, bulldog, collie, sheepdog,
    chihuahua, dachshund, dalmatian, pug, husky, spaniel, corgi, rottweiler, mutt, german shepherd
horse: pony, foal, colt, mare, stallion
sheep: lamb, ewe
cow: cattle, bull, calf, ox, steer, heifer
elephant:
bear: grizzly, panda, polar bear, panda bear, brown bear, black bear, grizzly bear
zebra:
giraffe:
backpack: rucksack, knapsack, book bag
umbrella: parasol
handbag: purse, hand bag, shoulder bag, tote bag
tie: necktie, neck tie, bow tie, bowtie
suitcase: suit case, luggage, baggage, briefcase
frisbee: flying disc
skis: ski
snowboard: snow board
sports ball: ball, soccer ball, tennis ball
kite:
baseball bat: bat
baseball glove: mitt, baseball mitt
skateboard: skate board, longboard
surfboard: surf board, boogie board, bodyboard
tennis racket: racket, racquet, tennis racquet
bottle: beer bottle, wine bottle, water bottle
wine glass: wineglass, goblet, champagne glass
cup: mug, teacup, tea cup, coffee cup, coffee mug, paper cup
fork: pitchfork
knife: pocketknife, pocket knife
spoon: teaspoon, tablespoon
bowl:
banana:
apple:
sandwich: burger, hamburger, cheeseburger, panini
orange: tangerine, clementine
broccoli:
carrot:
hot dog: hotdog
pizza: calzone
donut: doughnut
cake: cupcake, cheesecake, birthday cake, wedding cake, carrot cake, chocolate cake
chair: armchair, stool, recliner, arm chair, bar stool, barstool, lounge chair, rocking chair, office chair, desk chair,
    beach chair
couch: sofa, loveseat, love seat, settee, futon
potted plant: houseplant, house plant
bed: bunk, crib, cot, mattress, bunk bed
dining table: table, desk, tabletop, dinner table, kitchen table, picnic table, coffee table
toilet: urinal, toilet seat, toilet bowl
tv: television, tv set, television set, tv screen, monitor, computer monitor, computer screen
laptop: laptop computer, netbook, macbook
mouse: computer mouse
remote: remote control, game controller
keyboard: computer keyboard
cell phone: cellphone, phone, telephone, smartphone, mobile phone, smart phone, iphone
microwave: microwave oven
oven: stove, stovetop, stove top
toaster:
sink: washbasin, wash basin
refrigerator: fridge, freezer
book: textbook, novel, cookbook, paperback, notebook
clock: alarm clock, wall clock
vase: urn
scissors: scissor
teddy bear: teddy, stuffed bear, toy bear
hair drier: hairdryer, hair dryer, blow dryer
toothbrush: tooth brush
"""

# two words that name none of the objects that one of them would name alone
OTHERS = """
train track, train station, train platform, bus stop, bus station, ski lift, ski slope, ski resort, ski
pole, ski boot, ski jacket, ski goggle, ski suit, jet ski, cable car, car park, car seat, bike rack, bike lane, bike
path, boat house, dog house, dog food, dog bed, cat food, cat bed, cat tree, bird house, bird feeder, bird bath, bird
cage, cow boy, saw horse, rocking horse, rubber duck, orange juice, apple juice, apple sauce, apple pie, banana bread,
banana split, pizza box, pizza oven, oven mitt, toilet paper, toilet brush, toilet tank, flower bed, truck bed, book
shelf, book case, table cloth, table lamp, table tennis, ball game, ball park, ball cap, remote area, remote location,
tie dye, baby stroller, baby carriage, baby bottle, mouse pad
"""

# these words are people, but not before an animal or a vehicle: a baby elephant, a passenger train
QUALIFIERS = {
    "baby adult mother father male female infant": "bird cat dog horse sheep cow elephant bear zebra giraffe",
    "passenger": "car airplane bus train truck boat",
}
