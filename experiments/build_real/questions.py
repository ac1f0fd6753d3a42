"""Short questions in plain English, each of a topic; the topics of the test are no others'."""

TRAIN_TOPICS = """
apples|bicycles|bread|bridges|butterflies|candles|carrots|castles|cats|cheese|chess|clouds|coffee
|dancing|deserts|dolphins|drums|eagles|elephants|farms|fishing|flowers|football|forests|frogs
|gardens|glass|gold|guitars|hats|honey|horses|hospitals|ice|islands|kitchens|kites|ladders|lakes
|lemons|letters|libraries|lions|maps|markets|mirrors|monkeys|mountains|museums|music|newspapers
|oceans|onions|owls|painting|paper|parks|penguins|pianos|pizza|planets|potatoes|rabbits|radios
|rain|rice|rivers|robots|roses|running|sailing|salt|sand|schools|sheep|ships|shoes|singing|snow
|soap|soup|spiders|stars|stones|storms|sugar|swimming|teachers|theaters|tigers|tomatoes|trains
|travel|trees|turtles|umbrellas|villages|violins|volcanoes|watches|whales|wheels|windows|wolves
""".replace("\n", "").split("|")
TEST_TOPICS = """
airplanes|ants|bananas|beaches|bears|bees|birds|boats|books|buses|cakes|cameras|caves|chickens
|chocolate|clocks|cooking|cows|doctors|dogs|doors|ducks|eggs|fire|foxes|grass|hiking|hotels
|houses|ice cream|jungles|keys|lamps|milk|mushrooms|oranges|pencils|photographs|pigs|poems
|restaurants|roads|sleep|snakes|spoons|sports|streets|summer|swans|tea|tents|towers|toys|waterfalls
|wind|winter|wood|wool|yoga|zoos
""".replace("\n", "").split("|")
FRAMES = (
    "Tell me about {}.",
    "What is special about {}?",
    "Why do people like {}?",
    "Describe {} to a child.",
    "What should a beginner know about {}?",
)


def questions(topics: list[str], each: int) -> dict[str, str]:
    """Makes {id: question}: `each` of every topic, the frames by turns."""
    made = {}
    for t, topic in enumerate(topics):
        for i in range(each):
            frame = FRAMES[(t + i * 2) % len(FRAMES)]
            made[f"{topic.replace(' ', '_')}/{i}"] = frame.format(topic)
    return made
