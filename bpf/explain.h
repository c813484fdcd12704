// SPDX-License-Identifier: GPL-2.0-only
/*
 * In the program that explains, NOTE(field, value) writes a value that was looked up into the one row of
 * `explained`; in the one that watches, beside the packet at hand (watch.h). In every other program
 * it does nothing.
 */

static __always_inline struct explained *find_explained(void)
{
	u32 row = 0;

	if (HAS(WATCHING)) {
		struct watched *packet = watching.lookup(&row);

		return packet ? (void *)packet->seen : NULL;
	}
	return explained.lookup(&row);
}

#define NOTE(field, value) do {						\
	struct explained *noted = HAS(EXPLAIN) || HAS(WATCHING) ? find_explained() : NULL; \
									\
	if (noted)							\
		noted->field = (value);					\
} while (0)
