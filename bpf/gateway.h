// SPDX-License-Identifier: GPL-2.0-only
/*
 * Gateways of interfaces. A packet that comes in by an interface with a gateway, for an address on no network of the
 * node, leaves by the same interface to the gateway, whatever the kernel's routes say. The kernel knows the gateway's
 * MAC, as it does for any neighbour.
 */

/* Whether the kernel reaches an address without a router. `route` is all zeros, before and after. */
static __always_inline bool is_neighbour(struct xdp_md *ctx, const struct packet *packet, const struct address *address,
					 struct bpf_fib_lookup *route)
{
	bool is_found, is_same;
	int answer;

	route->family = address->is_ipv6 ? AF_INET6 : AF_INET;
	route->ifindex = packet->ingress;
	__builtin_memcpy(route->ipv6_dst, address->words, sizeof(route->ipv6_dst));
	answer = bpf_fib_lookup(ctx, route, sizeof(*route), 0);
	is_found = answer == BPF_FIB_LKUP_RET_SUCCESS || answer == BPF_FIB_LKUP_RET_NO_NEIGH;
	/* The lookup has replaced the destination by the address of the next hop. */
	is_same = is_same_words(route->ipv6_dst, address->words);
	__builtin_memset(route, 0, sizeof(*route));
	return is_found && is_same;
}

/*
 * The gateway for a packet to an address, NULL if the kernel's routes decide. `route`, all zeros, is room for a question
 * to the kernel: the stack has none for two, and the caller asks one afterwards.
 */
static __always_inline struct gateway *find_gateway(struct xdp_md *ctx, const struct packet *packet,
						    const struct address *address, struct bpf_fib_lookup *route)
{
	u32 ingress = packet->ingress;
	struct gateway *gateway;

	if (!HAS(GATEWAY))
		return NULL;
	gateway = gateways.lookup(&ingress);
	if (!gateway || gateway->is_ipv6 != address->is_ipv6 || is_neighbour(ctx, packet, address, route))
		return NULL;
	return gateway;
}
