-- Orders epochs. A sequence of its own: builds from before epochs had a random tail advance theirs to a whole
-- epoch when they meet a younger one, and the two must not drive one another up.
CREATE SEQUENCE epoch_order_seq AS bigint;
