// SPDX-License-Identifier: GPL-2.0-only
/*
 * VLANs (IEEE 802.1Q) on a trunk that the program runs on. The program takes the tag off first and puts one on last, so
 * the code in between never sees a tag. The FIB names the node's interface of a single VLAN, and so the tag to put on.
 *
 * Frames in VLANs that the node has no interface for are left alone; so are frames with two tags.
 */

struct vlan_header {
	__be16 tci;
	__be16 protocol;
};

#define TAG_MASK 0x0fff

/* The MACs of a frame, as three words. */
struct macs {
	u32 words[3];
};

/* Remove the first four bytes behind the MACs of a frame. False if the frame is too short for that. */
static __always_inline bool take_off(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct macs macs;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	macs = *(struct macs *)eth;
	if (bpf_xdp_adjust_head(ctx, sizeof(struct vlan_header)))
		return false;
	eth = (void *)(long)ctx->data;
	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return false;
	*(struct macs *)eth = macs;
	return true;
}

/* The tag of a frame with IP in it, of VLAN 0 or another; NULL if there is no tag, or no IP. */
static __always_inline struct vlan_header *find_tag(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct vlan_header *tag = (void *)(eth + 1);

	if ((void *)(tag + 1) > (void *)(long)ctx->data_end || eth->h_proto != bpf_htons(ETH_P_8021Q))
		return NULL;
	if (tag->protocol != bpf_htons(ETH_P_IP) && tag->protocol != bpf_htons(ETH_P_IPV6))
		return NULL;
	return tag;
}

/* Take off a tag of VLAN 0: it only gives a priority, for this link. */
static __always_inline void take_off_priority(struct xdp_md *ctx)
{
	struct vlan_header *tag = find_tag(ctx);

	if (tag && !(tag->tci & bpf_htons(TAG_MASK)))
		take_off(ctx);
}
#define TAGGED (1U << 16)	/* of packet.tci */
#define PRIORITY_MASK 0xf000

/*
 * Take the tag off, if there is one, and note it in `packet` with the interface of its VLAN. False if the node has no
 * interface for the VLAN: the frame is then as it was.
 */
static __always_inline bool take_off_tag(struct xdp_md *ctx, struct packet *packet)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	struct vlan_header *tag = find_tag(ctx);
	struct vlan vlan = { .trunk = ctx->ingress_ifindex };
	u32 *ifindex;

	if (!tag)
		return (void *)(eth + 1) > (void *)(long)ctx->data_end || eth->h_proto != bpf_htons(ETH_P_8021Q);
	packet->tci = TAGGED | bpf_ntohs(tag->tci);
	vlan.tag = packet->tci & TAG_MASK;
	if (vlan.tag) {		/* tag 0 is a priority and no VLAN */
		ifindex = vlans.lookup(&vlan);
		if (!ifindex)
			return false;
		packet->ingress = *ifindex;
	}
	return take_off(ctx);
}

/* Put a tag on. False if the driver left no room for it. */
static __always_inline bool put_on_tag(struct xdp_md *ctx, u16 tci)
{
	struct vlan_header *tag;
	struct ethhdr *eth;
	struct macs macs;

	if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*tag)))
		return false;
	eth = (void *)(long)ctx->data;
	tag = (void *)(eth + 1);
	if ((void *)(tag + 1) > (void *)(long)ctx->data_end)
		return false;
	macs = *(struct macs *)((void *)eth + sizeof(*tag));
	*(struct macs *)eth = macs;
	eth->h_proto = bpf_htons(ETH_P_8021Q);
	tag->tci = bpf_htons(tci);
	return true;
}

/* The interface that the frame leaves by: for that of a VLAN its trunk, and the frame gets the VLAN's tag. */
static __always_inline u32 find_trunk(struct packet *packet, u32 ifindex)
{
	struct vlan *vlan;

	if (!HAS(VLAN))
		return ifindex;
	vlan = trunks.lookup(&ifindex);
	if (!vlan) {
		packet->tci = 0;
		return ifindex;
	}
	packet->tci = TAGGED | (packet->tci & PRIORITY_MASK) | vlan->tag;
	return vlan->trunk;
}
