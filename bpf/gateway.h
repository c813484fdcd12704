// SPDX-License-Identifier: GPL-2.0-only
/*
 * Gateways of interfaces. A packet that comes in by an interface with a gateway, for an address on no network of the
 * node, leaves by the same interface to the gateway, whatever the kernel's routes say. The kernel knows the gateway's
 * MAC, as it does for any neighbour.
 */

/* Whether the kernel reaches an address without a router. */
static __always_inline bool is_neighbour(struct xdp_md *ctx, const struct packet *packet, __be32 address,
					 const struct address6 *address6)
{
	struct bpf_fib_lookup route = { .ifindex = packet->ingress };
	int answer;

	if (address6) {
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_dst, address6, sizeof(*address6));
	} else {
		route.family = AF_INET;
		route.ipv4_dst = address;
	}
	answer = bpf_fib_lookup(ctx, &route, sizeof(route), 0);
	if (answer != BPF_FIB_LKUP_RET_SUCCESS && answer != BPF_FIB_LKUP_RET_NO_NEIGH)
		return false;
	/* The lookup has replaced the destination by the address of the next hop. */
	if (!address6)
		return route.ipv4_dst == address;
	return route.ipv6_dst[0] == address6->words[0] && route.ipv6_dst[1] == address6->words[1] &&
	       route.ipv6_dst[2] == address6->words[2] && route.ipv6_dst[3] == address6->words[3];
}

/* The gateway for a packet to an address, NULL if the kernel's routes decide. */
static __always_inline struct gateway *find_gateway(struct xdp_md *ctx, const struct packet *packet, __be32 address,
						    const struct address6 *address6)
{
	u32 ingress = packet->ingress;
	struct gateway *gateway = gateways.lookup(&ingress);

	if (!gateway || gateway->is_ipv6 != (address6 != NULL) || is_neighbour(ctx, packet, address, address6))
		return NULL;
	return gateway;
}
