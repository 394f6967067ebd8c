"""The words of the synthetic world: a tree of departments, sections and leaves, and what items are called.

8 departments x 4 sections x 3 leaves = 96 leaf categories, spelled `department/section/leaf`, of three nouns each.
"""

from __future__ import annotations

_TREE = """
home/garden/tools: pruning shears, hand trowel, garden fork
home/garden/planters: terracotta pot, hanging basket, raised bed
home/garden/lighting: solar lantern, path light, string lights
home/kitchen/cookware: cast iron pan, stock pot, wok
home/kitchen/baking: cake tin, mixing bowl, rolling pin
home/kitchen/coffee: pour-over dripper, burr grinder, milk jug
home/bedroom/bedding: linen duvet cover, wool blanket, pillow
home/bedroom/storage: under-bed box, bedside table, wardrobe rail
home/bedroom/lamps: reading lamp, night light, paper shade
home/office/desks: standing desk, writing desk, corner desk
home/office/chairs: task chair, stool, footrest
home/office/organisers: letter tray, pen pot, cable box
fashion/women/dresses: wrap dress, linen dress, midi dress
fashion/women/knitwear: cardigan, roll-neck jumper, knitted vest
fashion/women/coats: trench coat, wool coat, rain jacket
fashion/men/shirts: oxford shirt, flannel shirt, overshirt
fashion/men/trousers: chinos, corduroy trousers, joggers
fashion/men/jackets: field jacket, bomber jacket, gilet
fashion/shoes/sneakers: court sneaker, running sneaker, canvas sneaker
fashion/shoes/boots: chelsea boot, hiking boot, ankle boot
fashion/shoes/sandals: leather sandal, slider, espadrille
fashion/accessories/bags: tote bag, backpack, crossbody bag
fashion/accessories/watches: field watch, dive watch, digital watch
fashion/accessories/jewellery: hoop earrings, signet ring, pendant
sports/cycling/parts: chainset, tyre, saddle
sports/cycling/clothing: bib shorts, jersey, winter gloves
sports/cycling/lights: front light, rear light, helmet light
sports/running/shoes: trail shoe, road shoe, racing flat
sports/running/trackers: heart rate strap, running watch, foot pod
sports/running/hydration: running vest, soft flask, bottle belt
sports/climbing/ropes: dynamic rope, accessory cord, rope bag
sports/climbing/shoes: bouldering shoe, trad shoe, approach shoe
sports/climbing/holds: jug set, crimp set, hangboard
sports/yoga/mats: cork mat, travel mat, alignment mat
sports/yoga/props: yoga block, bolster, strap
sports/yoga/clothing: leggings, loose trousers, wrap top
electronics/audio/headphones: over-ear headphones, earbuds, open-back headphones
electronics/audio/speakers: bookshelf speaker, portable speaker, soundbar
electronics/audio/turntables: belt-drive turntable, phono stage, cartridge
electronics/photo/cameras: mirrorless camera, compact camera, instant camera
electronics/photo/lenses: prime lens, zoom lens, macro lens
electronics/photo/tripods: travel tripod, table tripod, monopod
electronics/computing/keyboards: mechanical keyboard, number pad, split keyboard
electronics/computing/monitors: ultrawide monitor, portable monitor, monitor arm
electronics/computing/storage: external drive, memory card, network drive
electronics/smart-home/sensors: motion sensor, leak sensor, door sensor
electronics/smart-home/bulbs: colour bulb, filament bulb, light strip
electronics/smart-home/hubs: radio bridge, wall panel, smart plug
books/fiction/crime: detective novel, cold case thriller, legal thriller
books/fiction/fantasy: epic fantasy novel, fairy tale collection, dragon saga
books/fiction/literary: short story collection, family novel, debut novel
books/non-fiction/history: history of trade, biography, atlas of empires
books/non-fiction/science: popular physics book, field guide, history of medicine
books/non-fiction/economics: introduction to markets, essay on work, history of money
books/children/picture-books: bedtime story, counting book, animal book
books/children/activity: sticker book, colouring book, puzzle book
books/children/early-readers: first reader, phonics set, comic reader
books/cooking/vegetarian: weeknight cookbook, bean cookbook, salad book
books/cooking/baking: bread book, pastry manual, cake book
books/cooking/regional: noodle cookbook, mezze cookbook, curry cookbook
toys/building/bricks: brick castle, brick train, brick city
toys/building/models: wooden ship kit, aircraft kit, dinosaur skeleton kit
toys/building/marble-runs: starter marble run, spiral track, marble lift
toys/games/board-games: worker placement game, family board game, cooperative game
toys/games/card-games: trick-taking game, deck builder, memory game
toys/games/puzzles: 1000-piece jigsaw, wooden puzzle, puzzle box
toys/outdoor/kites: stunt kite, box kite, delta kite
toys/outdoor/balls: football, beach ball, skipping rope
toys/outdoor/ride-ons: balance bike, scooter, pedal tractor
toys/craft/painting: watercolour set, finger paints, easel
toys/craft/sewing: beginner sewing kit, felt set, weaving loom
toys/craft/clay: air-dry clay, pottery kit, modelling tools
beauty/skin/cleansers: cleansing oil, foam cleanser, micellar water
beauty/skin/moisturisers: day cream, night balm, gel moisturiser
beauty/skin/sunscreen: mineral sunscreen, sun stick, tinted sunscreen
beauty/hair/shampoo: solid shampoo, clarifying shampoo, volume shampoo
beauty/hair/styling: curl cream, sea salt spray, pomade
beauty/hair/tools: paddle brush, hair dryer, curling wand
beauty/make-up/lips: lipstick, lip oil, lip liner
beauty/make-up/eyes: mascara, eyeshadow palette, brow gel
beauty/make-up/face: blush, concealer, setting powder
beauty/fragrance/floral: rose perfume, neroli cologne, jasmine mist
beauty/fragrance/woody: cedar perfume, vetiver cologne, sandalwood oil
beauty/fragrance/candles: fig candle, beeswax candle, travel candle
grocery/drinks/tea: green tea, rooibos, earl grey
grocery/drinks/coffee: single origin beans, espresso blend, decaf beans
grocery/drinks/juices: apple juice, ginger shot, orange juice
grocery/pantry/pasta: rigatoni, egg noodles, wholewheat spaghetti
grocery/pantry/spices: smoked paprika, garam masala, black peppercorns
grocery/pantry/oils: olive oil, sesame oil, chilli oil
grocery/snacks/chocolate: dark chocolate bar, praline box, cocoa nibs
grocery/snacks/nuts: roasted almonds, trail mix, salted cashews
grocery/snacks/crisps: sea salt crisps, tortilla chips, lentil puffs
grocery/fresh/cheese: aged cheddar, goat cheese, blue cheese
grocery/fresh/fruit: berry box, citrus box, stone fruit box
grocery/fresh/bread: sourdough loaf, rye loaf, seeded rolls
"""

_PARSED = [line.split(": ", 1) for line in _TREE.strip().splitlines()]

LEAVES: tuple[str, ...] = tuple(category for category, _ in _PARSED)
NOUNS: tuple[tuple[str, ...], ...] = tuple(tuple(nouns.split(", ")) for _, nouns in _PARSED)
NUM_LEAVES = len(LEAVES)
LEAVES_PER_DEPARTMENT = NUM_LEAVES // len({category.split("/")[0] for category in LEAVES})

# An item belongs to a line of its leaf, which reads like a brand: "Alder", "Alder II", ...
LINES: tuple[str, ...] = (
    "Alder", "Birch", "Cove", "Dune", "Ember", "Fjord", "Grove", "Harbour", "Iris", "Juniper", "Kestrel", "Larch",
    "Meadow", "North", "Orchard", "Poppy", "Quarry", "Raven", "Sable", "Tern", "Umber", "Vale", "Willow", "Yarrow",
)  # fmt: skip

ADJECTIVES: tuple[str, ...] = (
    "Classic", "Compact", "Everyday", "Essential", "Heritage", "Limited", "Little", "Modern", "Original", "Premium",
    "Pro", "Simple", "Studio", "Travel", "Ultra", "Weekend",
)  # fmt: skip

# Median price by department, in the order of the tree.
DEPARTMENT_PRICES: tuple[float, ...] = (32.0, 48.0, 45.0, 120.0, 15.0, 24.0, 16.0, 7.0)
