// SPDX-License-Identifier: GPL-2.0-only
/*
 * Internet checksums, mostly updated by the words that changed: RFC 1624, equation 3, HC' = ~(~HC + ~m + m').
 *
 * An update gives the same result as a full computation, 0x0000 and 0xffff included: the two differ only where
 * every word of the sum is zero, and a header has a protocol number. A checksum that was wrong stays wrong, so
 * the receiver still finds the damage. Sums of 16-bit words don't depend on byte order (RFC 1071).
 */

/* ~m + m' of one word; sums of a few of them fit into 32 bits. */
static __always_inline u32 checksum_change16(__be16 before, __be16 after)
{
	return (u16)~before + after;
}

static __always_inline u32 checksum_change32(__be32 before, __be32 after)
{
	return checksum_change16(before >> 16, after >> 16) + checksum_change16(before, after);
}

/* The same where only the first byte of a word changes. */
static __always_inline u32 checksum_change8(u8 before, u8 after)
{
	return checksum_change16(bpf_htons(before << 8), bpf_htons(after << 8));
}

static __always_inline __sum16 checksum_update(__sum16 check, u32 changes)
{
	u32 sum = (u16)~check + changes;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}
