// SPDX-License-Identifier: GPL-2.0-only
/*
 * The ports of fullnat's source addresses: an exact allocator. A pool is one source address towards one server, and no two
 * of its connections have the same port. It says that there is none only if none is free.
 *
 * A client's own port is tried first; then a cursor goes round, so that a port rests as long as possible before it is
 * taken again. A port is a bit; whoever sets it has the port, so there is no lock. `full` spares the search words without
 * a free port. Whoever sets or clears a bit brings `full` up to date after that, and looks again at what it went by.
 *
 * A server that closes a connection before its client keeps it in TIME_WAIT for a minute, and answers a SYN with another
 * clock and other numbers wrongly (RFC 9293, section 3.6.1). Such a port comes back tired. It rests for one to two epochs,
 * unless there is nothing else at hand.
 *
 * Only programs take ports and give them back, each in one run that nothing can cut off: so a port is taken if and only if
 * an entry has it.
 */

/* An epoch has 2^36 ns, 69 seconds: Linux keeps TIME_WAIT for 60. */
#define EPOCH_SHIFT_NS 36
#define WORD_PORTS 64
#define PORT_WORDS 1024
#define FULL_WORDS (PORT_WORDS / 64)
#define NO_PORT (~0U)
#define POOL_MASK 0x7fff

/*
 * How many steps a search has: one for each word of `full` and the first again, two for each word of ports that has but
 * tired ones, of which there may be so many; and some to spare for words that others fill meanwhile.
 */
#define PORT_STEPS 30
#define TIRED_WORDS 4

/* 64 ports, a bit each. */
struct port_word {
	u64 taken;
	u64 tired[2];		/* by the lowest bit of the epoch in which they came back */
	u64 epoch;
};

static __always_inline u64 port_epoch(void)
{
	return bpf_ktime_get_coarse_ns() >> EPOCH_SHIFT_NS;
}

/* The number of the lowest bit that is set; 64 if none is. */
static __always_inline u32 lowest_bit(u64 bits)
{
	u64 lowest = bits & -bits, number = 0;

	number |= is_some(lowest & 0xffffffff00000000ULL) << 5;
	number |= is_some(lowest & 0xffff0000ffff0000ULL) << 4;
	number |= is_some(lowest & 0xff00ff00ff00ff00ULL) << 3;
	number |= is_some(lowest & 0xf0f0f0f0f0f0f0f0ULL) << 2;
	number |= is_some(lowest & 0xccccccccccccccccULL) << 1;
	number |= is_some(lowest & 0xaaaaaaaaaaaaaaaaULL);
	return number + ((is_some(bits) ^ 1) << 6);
}

static __always_inline struct port_word *port_word_of(struct pool_ports *pool, u32 port)
{
	return (struct port_word *)pool->words + port / WORD_PORTS % PORT_WORDS;
}

/* Which ports of a word came back tired in this epoch or the one before. */
static __always_inline u64 tired_in(const struct port_word *word, u64 epoch)
{
	u64 is_old = is_some(word->epoch ^ epoch), is_older = is_some((word->epoch + 1) ^ epoch) & is_old;
	u64 even = (~epoch & 1 & is_old) - 1, odd = (epoch & 1 & is_old) - 1;

	/* Of an earlier epoch, only those of the one before count. */
	return ((word->tired[0] & even) | (word->tired[1] & odd)) & (is_older - 1);
}

/* The ports of a word that a pool has, if its ports are so many: the last word may have fewer than 64. */
static __always_inline u64 ports_in(u32 word, u32 ports)
{
	u64 first = (u64)word * WORD_PORTS, behind = ports - first;

	return is_less(first, ports) & (~is_less(behind, WORD_PORTS) | ((1ULL << (behind & 63)) - 1));
}

/* Say in `full` whether a word has a free port. */
static __always_inline void note_full(struct pool_ports *pool, u32 word, u32 ports)
{
	volatile u64 *taken = &port_word_of(pool, word * WORD_PORTS)->taken;
	u64 *full = &pool->full[word / 64 % FULL_WORDS], bit = 1ULL << (word & 63), has = ports_in(word, ports);

	if (~*taken & has) {
		if (*(volatile u64 *)full & bit)
			__sync_fetch_and_and(full, ~bit);
		return;
	}
	__sync_fetch_and_or(full, bit);
	/* Somebody may have given one back before the bit was set, and found nothing to clear. */
	if (~*taken & has)
		__sync_fetch_and_and(full, ~bit);
}

/* Take a port, if it is free. note_full() is still to be called then. */
static __always_inline bool take_bit(struct pool_ports *pool, u32 port)
{
	u64 bit = 1ULL << (port & 63);

	return !(__sync_fetch_and_or(&port_word_of(pool, port)->taken, bit) & bit);
}

/* Give a port back. */
static __always_inline void free_bit(struct pool_ports *pool, u32 port, bool is_tired, u32 ports)
{
	struct port_word *word = port_word_of(pool, port);
	u64 bit = 1ULL << (port & 63), epoch = port_epoch(), held = word->epoch;

	if (is_tired) {
		if (held != epoch && __sync_val_compare_and_swap(&word->epoch, held, epoch) == held) {
			word->tired[epoch & 1] = 0;
			if (held + 1 != epoch)
				word->tired[~epoch & 1] = 0;
		}
		__sync_fetch_and_or(&word->tired[epoch & 1], bit);
	}
	__sync_fetch_and_and(&word->taken, ~bit);
	note_full(pool, port / WORD_PORTS, ports);
	__sync_fetch_and_add(&pool->used, -1);
}

/* The next free port that the cursor comes to, which is taken; NO_PORT if there is none. */
static __always_inline u32 seek_port(struct pool_ports *pool, u32 ports, u64 epoch)
{
	u64 at = *(volatile u32 *)&pool->cursor, any = pool->refused, tired = NO_PORT, tired_words = 0;
	u32 step;

	for (step = 0; step < PORT_STEPS; step++) {
		u64 word, skip, free, rested, is_new;
		struct port_word *held;

		at = forgotten(at, any);
		tired = forgotten(tired, any);
		tired_words = forgotten(tired_words, any);
		at &= is_less(at, ports);
		word = at / WORD_PORTS % PORT_WORDS;
		/* The next word that has some. */
		skip = lowest_bit(~pool->full[word / 64] >> (word & 63));
		if (skip) {
			at = (word + smaller(skip, 64 - (word & 63))) * WORD_PORTS;
			continue;
		}
		held = port_word_of(pool, at);
		free = ~held->taken & ports_in(word, ports) & ~0ULL << (at & 63);
		rested = free & ~tired_in(held, epoch);
		if (rested) {
			at = word * WORD_PORTS + lowest_bit(rested) % WORD_PORTS;
			if (take_bit(pool, at))
				return at;
			continue;
		}
		is_new = is_some(free) * (is_some(tired ^ NO_PORT) ^ 1);
		tired += (word * WORD_PORTS + lowest_bit(free) % WORD_PORTS - tired) * is_new;
		tired_words += is_some(free);
		if (tired_words >= TIRED_WORDS)
			break;
		at = (word + 1) * WORD_PORTS;
	}
	if (tired >= ports || !take_bit(pool, tired))
		return NO_PORT;
	__sync_fetch_and_add(&pool->unrested, 1);
	return tired;
}

/*
 * Take a port of a pool, which has so many: its own, if it is one of them and free, else the next that the cursor comes
 * to. Returns NO_PORT if none is free. Ports are counted from the first.
 */
static __always_inline u32 take_port(struct pool_ports *pool, u32 own, u32 ports)
{
	u64 epoch = port_epoch(), port = NO_PORT;
	struct port_word *word = port_word_of(pool, own);
	u64 held = (word->taken | tired_in(word, epoch)) >> (own & 63) & 1;

	if (own < ports && !held && take_bit(pool, own)) {
		port = own;
	} else {
		port = seek_port(pool, ports, epoch);
		if (port != NO_PORT)
			pool->cursor = port + 1;
	}
	port = forgotten(port, word->epoch);
	if (port >= ports)
		return NO_PORT;
	note_full(pool, port / WORD_PORTS, ports);
	__sync_fetch_and_add(&pool->used, 1);
	return port;
}
