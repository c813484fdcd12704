// SPDX-License-Identifier: GPL-2.0-only
/*
 * Decisions without branches: the verifier follows every path through a program, and a few branches of no consequence
 * in a row make too many. OPAQUE keeps the compiler from making branches of the arithmetic.
 */

/*
 * The same number, of which the verifier knows nothing any more: it would follow all that comes once for each value that
 * it knows. `any` is a number of 64 bits that it knows nothing about.
 */
static __always_inline u64 forgotten(u64 number, u64 any)
{
	u64 same = any;

	OPAQUE(same);
	return number + (same - any);
}

/* 1 if a number is not zero. */
static __always_inline u64 is_some(u64 number)
{
	u64 negative = -number;

	OPAQUE(negative);
	return (number | negative) >> 63;
}

/* All ones if `one` is less than `two`; both are below 2^63. */
static __always_inline u64 is_less(u64 one, u64 two)
{
	u64 mask = (s64)(one - two) >> 63;

	OPAQUE(mask);
	return mask;
}

/* The smaller of two numbers below 2^63. */
static __always_inline u64 smaller(u64 one, u64 two)
{
	return two + ((one - two) & is_less(one, two));
}
