// SPDX-License-Identifier: GPL-2.0-only
/*
 * How many connections endpoints have, for least-connections.
 *
 * To look at all endpoints would take longer the more there are, and all balancers of a site would rush to the same one.
 * Of two that are drawn by weight, the one with fewer connections for its weight is nearly as good a choice: Mitzenmacher,
 * "The Power of Two Choices in Randomized Load Balancing", 2001.
 */

/* A connection of an endpoint begins (1) or ends (-1). */
static __always_inline void note_load(u32 endpoint, s32 change)
{
	struct endpoint_load *load = HAS(LEAST_CONNECTIONS) ? loads.lookup(&endpoint) : NULL;

	if (load)
		__sync_fetch_and_add(&load->since, change);
}

/* How many connections an endpoint would have with one more. A connection that nobody saw the beginning of may end. */
static __always_inline u64 load_with_one_more(const struct endpoint_load *load)
{
	s32 sum = *(volatile u32 *)&load->since + *(volatile u32 *)&load->counted;

	return sum > 0 ? (u64)sum + 1 : 1;
}

/* Of two endpoints, the one with fewer connections for its weight; the first if they are equal. */
static __always_inline u32 less_loaded(u32 first, u32 second)
{
	struct endpoint_load *one = loads.lookup(&first), *two = loads.lookup(&second);

	if (!one || !two)
		return first;
	/* A weight of 0 can't be there but while somebody writes it. */
	return load_with_one_more(two) * (one->weight | !one->weight) < load_with_one_more(one) * (two->weight | !two->weight) ?
	       second : first;
}
