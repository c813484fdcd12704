// SPDX-License-Identifier: GPL-2.0-only
/* Addresses of both versions of IP. */

/* An IPv4 address is the first word; the others are zero then. */
struct address {
	__be32 words[4];
	bool is_ipv6;
};

/* The address that lies in a packet or in a row of a map. */
static __always_inline struct address read_address(const void *place, bool is_ipv6)
{
	struct address address = { .is_ipv6 = is_ipv6 };

	if (is_ipv6)
		__builtin_memcpy(address.words, place, sizeof(address.words));
	else
		address.words[0] = *(const __be32 *)place;
	return address;
}

static __always_inline bool is_same_words(const __be32 *one, const __be32 *two)
{
	return one[0] == two[0] && one[1] == two[1] && one[2] == two[2] && one[3] == two[3];
}

/* Copy an address of the version that a stage of NAT is for. */
static __always_inline void copy_address(__be32 *into, const void *from)
{
	const __be32 *words = from;

	into[0] = words[0];
	if (!HAS(AS_NAT6))
		return;
	into[1] = words[1];
	into[2] = words[2];
	into[3] = words[3];
}

/* An address as one number in host byte order, to be hashed. A processor multiplies both halves at the same time. */
static __always_inline u32 fold_address(const void *place, bool is_ipv6)
{
	const __be32 *words = place;
	u64 high, low;

	if (!is_ipv6)
		return bpf_ntohl(words[0]);
	high = (u64)bpf_ntohl(words[0]) << 32 | bpf_ntohl(words[1]);
	low = (u64)bpf_ntohl(words[2]) << 32 | bpf_ntohl(words[3]);
	high = (high ^ high >> 29) * 0xff51afd7ed558ccdULL;
	low = (low ^ low >> 29) * 0xc4ceb9fe1a85ec53ULL;
	return (high ^ low) >> 32;
}

/*
 * Whether an address is nobody's or several hosts': 0.0.0.0/8, the loopback, multicast or above (RFC 1122, section
 * 3.2.1.3); "::", "::1" and multicast (RFC 4291).
 */
static __always_inline bool is_no_single_host(const void *place, bool is_ipv6)
{
	const __be32 *words = place;
	u32 first = bpf_ntohl(words[0]) >> 24;

	if (!is_ipv6)
		return first == 0 || first == 127 || first >= 224;
	return first == 0xff || (!words[0] && !words[1] && !words[2] && bpf_ntohl(words[3]) <= 1);
}
