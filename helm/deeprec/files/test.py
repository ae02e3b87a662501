"""Asks for a user, sends an event of theirs, and asks again until the recommendation knows it."""

import os
import time
import uuid

from deeprec.client import Client

SECONDS = 60
user = os.environ["DEEPREC_TEST_USER"]
with Client(os.environ["DEEPREC_TEST_RECOMMENDER"], name=os.environ["DEEPREC_TEST_NAME"]) as recommender:
    answer = recommender.recommend(user_id=user, k=5)
    print(f"{len(answer.items)} items for {user}, by {answer.path}: {answer.reason}")
    assert answer.items, "nothing was recommended"
    if os.environ.get("DEEPREC_TEST_EVENTS"):
        item = answer.items[0].id
        token = os.environ.get("DEEPREC_TEST_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else None
        with Client(os.environ["DEEPREC_TEST_EVENTS"], headers=headers) as events:
            print(events.send([{"event_id": f"helm-test-{uuid.uuid4()}", "user_id": user, "item_id": item}]))
        until = time.monotonic() + SECONDS
        while True:
            answer = recommender.recommend(user_id=user, k=5)
            if answer.user_known and item not in [one.id for one in answer.items]:
                break
            assert time.monotonic() < until, f"after {SECONDS} s the event was not in the answer: {answer}"
            time.sleep(1)
        print(f"the event of {user} on {item} is known")
