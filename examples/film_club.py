"""A film club's ratings, from a dict to recommendations with reasons: runs in a second, needs no file.

python examples/film_club.py
"""

import numpy as np

import eckart as ek

films = ["Alien", "Arrival", "Blade Runner", "Before Sunrise", "Amelie", "Notting Hill"]
rng = np.random.default_rng(0)

# Forty members, half of whom like science fiction (the first three films) and half romance; each saw four films.
ratings: dict[str, list] = {"user": [], "item": [], "rating": []}
for member in range(40):
    likes = range(3) if member % 2 else range(3, 6)
    for film in rng.permutation(6)[:4]:
        ratings["user"].append(f"member {member:02}")
        ratings["item"].append(films[film])
        ratings["rating"].append(rng.integers(4, 6) if film in likes else rng.integers(1, 3))

model = ek.ALS(rank=2, reg=0.05, epochs=20).fit(ek.read(ratings))

print("member 01 has not seen:")
for row in model.recommend("member 01").to_pylist():
    print(f"  {row['item']:<15} {row['score']:.1f} stars")

newcomer = {"Alien": 5, "Notting Hill": 1}
best = model.recommend(history=newcomer, k=1).to_pylist()[0]
print(f"someone who loves Alien and not Notting Hill: {best['item']} ({best['score']:.1f} stars)")

why = model.explain("member 01", "Arrival")
print(f"Arrival for member 01: {why.baseline:.1f} for everyone, and")
for row in why.reasons.to_pylist():
    print(f"  {row['contribution']:+.1f} for giving {row['item']} {row['value']:.0f}")
print(f"  = {why.score:.1f}")
