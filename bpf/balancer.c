// SPDX-License-Identifier: GPL-2.0-only
/*
 * A layer-4 load balancer in XDP.
 *
 * A packet that is neither for a VIP nor a reply of an endpoint is never touched: the program looks up the VIP
 * before it drops anything. Features are compiled in by -D, and cost nothing otherwise: the modes NAT, DSR_L2 and
 * DSR_L3, the protocols UDP and SCTP (TCP always is there), IPV6, the algorithms ROUND_ROBIN, SOURCE_HASH and
 * MAGLEV, REJECT for undefined traffic, ECHO for pings of VIPs, and with it FORWARD_ECHO for pings that endpoints
 * answer, GATEWAY for interfaces with a next hop of their own, and VLAN for trunks.
 *
 * BCC 0.26 rewrites map accesses in the main file only, so the loader pastes the headers in here before BCC sees
 * the text. The headers stand in the order in which they need each other and include nothing themselves.
 */

#include <uapi/linux/bpf.h>
#include <uapi/linux/icmp.h>
#include <uapi/linux/icmpv6.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#if defined(DSR_L2) || defined(DSR_L3)
#define DSR
#endif

#include "maps.h"
#include "explain.h"
#include "count.h"
#include "parse.h"
#ifdef IPV6
#include "parse6.h"
#endif
#include "checksum.h"
#if defined(DSR) || defined(REJECT) || defined(ECHO) || defined(GATEWAY)
#include "header.h"
#endif
#if defined(DSR_L2) || defined(GATEWAY)
#include "neighbour.h"
#endif
#ifdef GATEWAY
#include "gateway.h"
#endif
#include "vlan.h"
#include "forward.h"
#include "schedule.h"
#include "vip.h"
#ifdef NAT
#include "flow.h"
#include "nat.h"
#endif
#if defined(DSR) || defined(REJECT) || defined(ECHO)
#include "icmp.h"
#ifdef IPV6
#include "icmp6.h"
#endif
#endif
#ifdef ECHO
#include "echo.h"
#ifdef IPV6
#include "echo6.h"
#endif
#endif
#ifdef REJECT
#include "reject.h"
#ifdef IPV6
#include "reject6.h"
#endif
#endif
#ifdef DSR
#include "remember.h"
#include "transition.h"
#include "mode.h"
#include "next_hop.h"
#ifdef DSR_L3
#include "tunnel.h"
#ifdef IPV6
#include "tunnel6.h"
#endif
#include "tunnel_error.h"
#endif
#include "dsr.h"
#endif
#ifdef IPV6
#include "balance6.h"
#endif

#ifdef ECHO
static __always_inline int echo(struct xdp_md *ctx, struct packet *packet)
{
	__be32 address = packet->ip->daddr;
	struct vip *vip = vips.lookup(&address);

	if (!vip)
		return XDP_PASS;

	NOTE(vip, vip->undefined);
	if (vip->echo == ECHO_REPLY)
		return reply_echo(packet);
#if defined(FORWARD_ECHO) && defined(DSR)
	if (vip->echo == ECHO_ENDPOINT) {
		struct service_key asked = { .vip = address, .protocol = IPPROTO_ICMP };
		struct client client = { .address = bpf_ntohl(packet->ip->saddr), .protocol = IPPROTO_ICMP };
		struct service *service = services.lookup(&asked);

		if (service && is_dsr(service))
			return dsr(ctx, packet, false, PACKET_ECHO, service, &client);
		return drop(VERDICT_NO_ENDPOINT);
	}
#endif
	return drop(VERDICT_ECHO_DROPPED);
}
#endif

/* A packet that no service and no connection claims. */
static __always_inline int leftover(struct xdp_md *ctx, struct packet *packet, enum packet_kind kind)
{
	__be32 address = packet->ip->daddr;
	struct vip *vip = vips.lookup(&address);

	if (!vip)
		return XDP_PASS;

	NOTE(vip, vip->undefined);
	/* The VIP is one of the node's own addresses, so the kernel answers pings and takes ICMP errors. */
#ifdef ECHO
	if (packet->ip->protocol == IPPROTO_ICMP && is_for_kernel(vip, kind))
#else
	if (packet->ip->protocol == IPPROTO_ICMP)
#endif
		return XDP_PASS;

	switch (kind) {
	case PACKET_MALFORMED:
		return drop(VERDICT_MALFORMED);
	case PACKET_OPTIONS:
		return drop(VERDICT_IP_OPTIONS);
	case PACKET_FRAGMENT:
		return drop(VERDICT_FRAGMENT);
	default:
		break;
	}
	if (vip->undefined == UNDEFINED_PASS)
		return XDP_PASS;
#ifdef REJECT
	if (vip->undefined == UNDEFINED_REJECT)
		return reject(ctx, packet, kind);
#endif
	return drop(VERDICT_UNDEFINED);
}

/* What becomes of a packet without a tag. */
static __always_inline int balance(struct xdp_md *ctx, struct packet *packet)
{
	enum packet_kind kind = parse(ctx, packet);
	bool is_for_vip;

	if (kind == PACKET_NOT_IP)
#ifdef IPV6
		return balance6(ctx, packet);
#else
		return XDP_PASS;
#endif

#ifdef DSR_L3
	if (kind == PACKET_ICMP_ERROR && packet->quoted_protocol == IPPROTO_IPIP)
		return relay_error(ctx, packet, false, false);
#endif
	is_for_vip = may_be_vip(bpf_ntohl(packet->ip->daddr));
#ifdef NAT
	if (!is_for_vip && kind != PACKET_TCP)	/* a TCP segment may be a reply */
#else
	if (!is_for_vip)
#endif
		return XDP_PASS;

#ifdef ECHO
	if (kind == PACKET_ECHO)
		return echo(ctx, packet);
#endif
#ifdef DSR
	/*
	 * An error about a packet that an endpoint sent to a client. The quoted packet has the addresses of a
	 * request the other way round, so the error goes to the endpoint of that client's requests.
	 */
	if (kind == PACKET_ICMP_ERROR) {
		struct service_key asked = {
			.vip = packet->quoted->saddr,
			.port = packet->ports->source,
			.protocol = packet->quoted_protocol,
		};
		struct service *service = services.lookup(&asked);

		if (service && is_dsr(service)) {
			struct client client = {
				.address = bpf_ntohl(packet->quoted->daddr),
				.port = bpf_ntohs(packet->ports->destination),
				.protocol = packet->quoted_protocol,
			};

			return dsr(ctx, packet, false, kind, service, &client);
		}
	}
#endif
	if (kind == PACKET_TCP || kind == PACKET_DATAGRAM) {
		struct service_key asked = {
			.vip = packet->ip->daddr,
			.port = packet->ports->destination,
			.protocol = packet->ip->protocol,
		};
		struct service *service = is_for_vip ? services.lookup(&asked) : NULL;

#ifdef DSR
		if (service && is_dsr(service)) {
			struct client client = {
				.address = bpf_ntohl(packet->ip->saddr),
				.port = bpf_ntohs(packet->ports->source),
				.protocol = packet->ip->protocol,
			};

			return dsr(ctx, packet, false, kind, service, &client);
		}
#endif
#ifdef NAT
		if (kind == PACKET_TCP) {
			struct flow_key key = {
				.source = packet->ip->saddr,
				.destination = packet->ip->daddr,
				.source_port = packet->ports->source,
				.destination_port = packet->ports->destination,
				.protocol = IPPROTO_TCP,
			};
			struct flow *flow;

			if (service && service->mode == MODE_NAT)
				return nat_request(ctx, packet, service, &key);

			/*
			 * A reply that is a fragment or has IP options doesn't come this far: its ports are
			 * unknown. The kernel forwards it as it is, and the client, which knows no such
			 * connection, ignores it.
			 */
			flow = flows.lookup(&key);
			if (may_be_others(flow, packet->tcp) && !ask_other(ctx, packet))
				return drop(VERDICT_MALFORMED);
			if (flow && flow->direction == DIRECTION_REPLY)
				return nat_reply(ctx, packet, &key, flow);
		}
#endif
	}
	return is_for_vip ? leftover(ctx, packet, kind) : XDP_PASS;
}

int lbctl_balance(struct xdp_md *ctx)
{
	struct packet packet = { .ingress = ctx->ingress_ifindex };
#ifdef VLAN
	int action;
#endif

	NOTE(bytes, ctx->data_end - ctx->data);
#ifdef VLAN
	if (!take_off_tag(ctx, &packet))
		return XDP_PASS;
	action = balance(ctx, &packet);
	if (packet.tci & TAGGED && action != XDP_DROP && !put_on_tag(ctx, packet.tci))
		return drop(VERDICT_NO_HEADROOM);
	return action;
#else
	take_off_priority(ctx);
	return balance(ctx, &packet);
#endif
}
