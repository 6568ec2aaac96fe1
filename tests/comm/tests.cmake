tandem_test(comm_collectives comm/collectives.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_async comm/async.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_agree comm/agree.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
tandem_test(comm_buckets comm/buckets.c LIBS tandem_comm RANKS 1 2 3 4 LABELS comm)
