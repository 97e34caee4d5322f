"""Class names of ESC-50, UrbanSound8K, FSD50K and DCASE Task 4 that differ from AudioSet's display names.

A name means the narrowest of the 527 classes that covers it: `crying_baby` is "Baby cry, infant cry", and `hen` is
"Chicken, rooster". A name that no single class covers is in OUTSIDE: it is known, and no class of this program.
"""

from __future__ import annotations

ALIASES = {
    # ESC-50 and ESC-10; those that AudioSet writes in the same way are not repeated here.
    "rooster": "Chicken, rooster",
    "hen": "Chicken, rooster",
    "cow": "Cattle, bovinae",
    "insects": "Insect",
    "crickets": "Cricket",
    "sea_waves": "Waves, surf",
    "crackling_fire": "Fire",
    "chirping_birds": "Chirp, tweet",
    "water_drops": "Drip",
    "pouring_water": "Pour",
    "crying_baby": "Baby cry, infant cry",
    "sneezing": "Sneeze",
    "coughing": "Cough",
    "footsteps": "Walk, footsteps",
    "laughing": "Laughter",
    "brushing_teeth": "Toothbrush",
    "door_wood_knock": "Knock",
    "mouse_click": "Clicking",
    "keyboard_typing": "Computer keyboard",
    "door_wood_creaks": "Creak",
    "clock_alarm": "Alarm clock",
    "clock_tick": "Tick",
    "glass_breaking": "Shatter",
    "car_horn": "Vehicle horn, car horn, honking",
    "church_bells": "Church bell",
    "airplane": "Fixed-wing aircraft, airplane",
    "hand_saw": "Sawing",
    # UrbanSound8K; it shares car_horn and siren with ESC-50.
    "air_conditioner": "Air conditioning",
    "dog_bark": "Bark",
    "drilling": "Drill",
    "engine_idling": "Idling",
    "gun_shot": "Gunshot, gunfire",
    "street_music": "Music",
    # FSD50K
    "crash_cymbal": "Cymbal",
    # DCASE Task 4 (DESED)
    "dishes": "Dishes, pots, and pans",
    "frying": "Frying (food)",
}
"""Name in the data set -> AudioSet's display name."""

OUTSIDE = (
    *("can_opening", "drinking_sipping", "washing_machine"),  # ESC-50
    *("domestic_sounds_and_home_sounds", "gull_and_seagull", "human_group_actions", "human_voice"),  # FSD50K
    *("packing_tape_and_duct_tape", "respiratory_sounds", "screech"),  # FSD50K
    *("alarm_bell_ringing", "electric_shaver_toothbrush", "running_water"),  # DCASE Task 4
)
"""Names that no single class of the 527 covers."""
