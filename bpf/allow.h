// SPDX-License-Identifier: GPL-2.0-only
/*
 * Allowed sources: a service may have a list of the networks that its clients are in. Services with equal lists share one.
 *
 * A list is a set of addresses in nodes, each with 256 bits: a node of level n stands for all addresses with the same
 * first n bytes, and has a bit for each value of the byte behind those. The bits of a network of 17 to 24 bits are on
 * level 2, side by side. The row of a service says which levels its list has any nodes on, and so how many look-ups an
 * address takes: user space keeps them few, since it may write a short network as nodes of a deeper level.
 *
 * Lists never change: user space writes another one, and then the row of the service, which leads to it in one step. Packets
 * under way may still look into the former list, so that goes later.
 */

#define LEVELS 4
#define LEVELS6 16

static __always_inline u64 has_bit(const struct source_node *node, u8 byte)
{
	return node ? node->bits[byte / 64] >> byte % 64 & 1 : 0;
}

static __always_inline u64 is_allowed4(const struct service *service, u32 address)
{
	struct source_key asked = { .list = service->sources };
	u64 found = 0;
	u32 level;

#pragma unroll
	for (level = 0; level < LEVELS; level++) {
		if (!(service->levels >> level & 1))
			continue;
		asked.node = (address & ~(0xffffffffU >> 8 * level)) | level;
		found |= has_bit(sources.lookup(&asked), address >> (24 - 8 * level));
	}
	return found;
}

static __always_inline u64 is_allowed6(const struct service *service, const __be32 *words)
{
	struct source6_key asked = { .list = service->sources };
	u64 found = 0;
	u32 level, word;

#pragma unroll
	for (level = 0; level < LEVELS6; level++) {
		/* What belongs to deeper levels is zero still. */
		if (level % 4)
			asked.node[level / 4] = words[level / 4] & bpf_htonl(~(0xffffffffU >> 8 * (level % 4)));
		else if (level)
			asked.node[level / 4 - 1] = words[level / 4 - 1];
		if (!(service->levels >> level & 1))
			continue;
		word = asked.node[3];
		asked.node[3] |= bpf_htonl(level);
		found |= has_bit(sources6.lookup(&asked), ((const u8 *)words)[level]);
		OPAQUE(found);
		asked.node[3] = word;
	}
	return found;
}

/* Whether a client may use a service. */
static __always_inline bool is_allowed(const struct service *service, const struct client *client)
{
	if (!service->sources)
		return true;
	if (HAS(IPV6) && client->is_ipv6)
		return is_allowed6(service, client->words);
	return is_allowed4(service, client->address);
}
