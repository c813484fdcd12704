// SPDX-License-Identifier: GPL-2.0-only
/*
 * The endpoint's side of dsr-l3 where the kernel can't unpack tunnels: IPv4 in IPv4 (RFC 2003) and, with the feature
 * IPV6, IPv4 and IPv6 in IPv6 (RFC 2473).
 *
 * The program unpacks, and judges, only packets in tunnels to this node for VIPs that the node holds; it passes
 * all others on as they came. It is XDP rather than TC: XDP sees packets before the kernel merges them, so each has
 * the lengths that its headers say, and lbctl swaps and finds the program like that of a balancer.
 *
 * The loader pastes the headers in here before the compiler sees the text: see balancer.c.
 */

#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>

#include "features.h"
#include "maps.h"
#include "explain.h"
#include "count.h"
#include "checksum.h"

/* The bits of the offset field that mark a fragment: "more fragments", and the offset itself. */
#define IP_IS_FRAGMENT 0x3fff

/* RFC 3168, section 5. */
enum ecn {
	ECN_NOT_ECT = 0,
	ECN_ECT_1 = 1,
	ECN_ECT_0 = 2,
	ECN_CE = 3,
	ECN_BITS = 3,
};

/* The inner packet: where it begins, and how many bytes of it the outer one holds. */
struct load {
	void *inner;
	void *end;		/* of the frame */
	u32 bytes;
	u32 outer_bytes;	/* of the outer header */
	u8 ecn;			/* of the outer header */
};

/*
 * The ECN field that the inner packet gets: RFC 6040, section 4.2. Negative if the packet must be dropped: some
 * router marked it for congestion, and its sender does not know the mark.
 */
static __always_inline int merged_ecn(u8 inner, u8 outer)
{
	if (inner == ECN_NOT_ECT)
		return outer == ECN_CE ? -1 : ECN_NOT_ECT;
	if (outer == ECN_CE || (outer == ECN_ECT_1 && inner == ECN_ECT_0))
		return outer;
	return inner;
}

/*
 * Whether the outer destination is this node. If the node forwards, the FIB says which addresses are the node's
 * own; if not, the kernel itself drops packets for others.
 */
static __always_inline bool is_own(struct xdp_md *ctx, struct bpf_fib_lookup *route)
{
	long answer;

	route->ifindex = ctx->ingress_ifindex;
	answer = bpf_fib_lookup(ctx, route, sizeof(*route), 0);
	return answer == BPF_FIB_LKUP_RET_NOT_FWDED || answer == BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* Take the outer header away. */
static __always_inline int unpack(struct xdp_md *ctx, const struct load *load, __be16 type)
{
	struct ethhdr *eth = (void *)(long)ctx->data, kept;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	kept = *eth;
	kept.h_proto = type;
	if (bpf_xdp_adjust_head(ctx, load->outer_bytes))
		return drop(VERDICT_MALFORMED);
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return drop(VERDICT_MALFORMED);
	*eth = kept;
	return count(VERDICT_DECAPSULATED, XDP_PASS);
}

static __always_inline int decapsulate4(struct xdp_md *ctx, struct load *load, struct bpf_fib_lookup *route)
{
	struct iphdr *ip = load->inner;
	struct unpacked_key vip = { .version = 4 };
	u8 tos;
	int ecn;

	if ((void *)(ip + 1) > load->end)
		return count(VERDICT_NOT_FOR_VIP, XDP_PASS);
	vip.address[0] = ip->daddr;
	if (!unpacked.lookup(&vip))
		return count(VERDICT_NOT_FOR_VIP, XDP_PASS);
	if (!is_own(ctx, route))
		return count(VERDICT_TUNNEL_ELSEWHERE, XDP_PASS);
	if (ip->version != 4 || ip->ihl < 5 || bpf_ntohs(ip->tot_len) < ip->ihl * 4 ||
	    bpf_ntohs(ip->tot_len) > load->bytes)
		return drop(VERDICT_MALFORMED);
	ecn = merged_ecn(ip->tos & ECN_BITS, load->ecn);
	if (ecn < 0)
		return drop(VERDICT_CONGESTED);
	tos = (ip->tos & ~ECN_BITS) | ecn;
	ip->check = checksum_update(ip->check, checksum_change16(bpf_htons(ip->tos), bpf_htons(tos)));
	ip->tos = tos;
	return unpack(ctx, load, bpf_htons(ETH_P_IP));
}

static __always_inline int decapsulate6(struct xdp_md *ctx, struct load *load, struct bpf_fib_lookup *route)
{
	struct ipv6hdr *ip = load->inner;
	struct unpacked_key vip = { .version = 6 };
	__be32 *first = load->inner;
	u32 words;
	int ecn;

	if ((void *)(ip + 1) > load->end)
		return count(VERDICT_NOT_FOR_VIP, XDP_PASS);
	__builtin_memcpy(vip.address, &ip->daddr, sizeof(vip.address));
	if (!unpacked.lookup(&vip))
		return count(VERDICT_NOT_FOR_VIP, XDP_PASS);
	if (!is_own(ctx, route))
		return count(VERDICT_TUNNEL_ELSEWHERE, XDP_PASS);
	if (ip->version != 6 || sizeof(*ip) + bpf_ntohs(ip->payload_len) > load->bytes)
		return drop(VERDICT_MALFORMED);
	words = bpf_ntohl(*first);	/* version, traffic class, flow label: RFC 8200, section 3 */
	ecn = merged_ecn(words >> 20 & ECN_BITS, load->ecn);
	if (ecn < 0)
		return drop(VERDICT_CONGESTED);
	*first = bpf_htonl((words & ~(u32)(ECN_BITS << 20)) | (u32)ecn << 20);
	return unpack(ctx, load, bpf_htons(ETH_P_IPV6));
}

int lbctl_decapsulate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct bpf_fib_lookup route = {};
	struct load load = { .end = end };

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		if (ip->version != 4 || ip->protocol != IPPROTO_IPIP)
			return XDP_PASS;
		/* No balancer sends fragments or options; the kernel puts fragments together and judges both. */
		if (ip->ihl != 5 || ip->frag_off & bpf_htons(IP_IS_FRAGMENT))
			return count(VERDICT_TUNNEL_UNUSUAL, XDP_PASS);
		if (bpf_ntohs(ip->tot_len) < sizeof(*ip) || bpf_ntohs(ip->tot_len) > end - (void *)ip)
			return count(VERDICT_TUNNEL_UNUSUAL, XDP_PASS);
		load.inner = ip + 1;
		load.bytes = bpf_ntohs(ip->tot_len) - sizeof(*ip);
		load.outer_bytes = sizeof(*ip);
		load.ecn = ip->tos & ECN_BITS;
		route.family = AF_INET;
		route.tos = ip->tos;
		route.ipv4_src = ip->saddr;
		route.ipv4_dst = ip->daddr;
		return decapsulate4(ctx, &load, &route);
	}
	if (HAS(IPV6) && eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip6 = (void *)(eth + 1);

		if ((void *)(ip6 + 1) > end || ip6->version != 6)
			return XDP_PASS;
		if (bpf_ntohs(ip6->payload_len) > end - (void *)(ip6 + 1))
			return XDP_PASS;
		load.inner = ip6 + 1;
		load.bytes = bpf_ntohs(ip6->payload_len);
		load.outer_bytes = sizeof(*ip6);
		load.ecn = bpf_ntohl(*(__be32 *)ip6) >> 20 & ECN_BITS;
		route.family = AF_INET6;
		__builtin_memcpy(route.ipv6_src, &ip6->saddr, sizeof(ip6->saddr));
		__builtin_memcpy(route.ipv6_dst, &ip6->daddr, sizeof(ip6->daddr));
		if (ip6->nexthdr == IPPROTO_IPIP)
			return decapsulate4(ctx, &load, &route);
		if (ip6->nexthdr == IPPROTO_IPV6)
			return decapsulate6(ctx, &load, &route);
	}
	return XDP_PASS;
}
