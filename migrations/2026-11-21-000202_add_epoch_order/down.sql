DROP SEQUENCE epoch_order_seq;
