// SPDX-License-Identifier: GPL-2.0-only
/*
 * How a reply of fullnat finds its connection: by the pool that its port is from, and the port. An entry is one word
 * (maps.h) in either of two buckets, written and cleared by compare-and-swap; it is there as long as the port is taken.
 */

/* The loader puts the number of buckets in the place of this number: reconciler/kernel/build.py. */
#define RETURN_BUCKETS 0x72657475726e7301ULL
#define RETURN_WORDS 8
#define RETURN_KEY_SHIFT 27
#define RETURN_PLACE_MASK ((1ULL << RETURN_KEY_SHIFT) - 1)

static __always_inline u64 return_key(u32 pool, u32 port)
{
	return (u64)(pool & POOL_MASK) << 16 | (port & 0xffff);
}

/* Both halves say a bucket each. */
static __always_inline u64 hash_return(u64 key)
{
	u32 row = 0;
	struct seed *secret = seed.lookup(&row);

	return secret ? mix64(mix64(key ^ secret->words[1]) + secret->words[0]) : 0;
}

static __always_inline struct returns *find_returns(u32 half)
{
	u64 buckets = RETURN_BUCKETS;
	u32 index;

	OPAQUE(buckets);
	index = half * buckets >> 32;
	return HAS(AS_NAT6) ? returns6.lookup(&index) : returns.lookup(&index);
}

/* The place after which a word of a bucket says that the connection of a port is; 0 if none does. */
static __always_inline u64 place_in(const struct returns *bucket, u64 key)
{
	u64 found = 0, word;

#pragma unroll
	for (word = 0; word < RETURN_WORDS; word++) {
		u64 held = bucket->words[word];

		found |= held & (is_some(held >> RETURN_KEY_SHIFT ^ key) - 1);
	}
	return found & RETURN_PLACE_MASK;
}

/* The number of the place, plus 1, at which the connection of a port is; 0 if there is none. */
static __always_inline u64 find_return(u64 key)
{
	u64 hash = hash_return(key), place;
	struct returns *first = find_returns(hash >> 32), *second = find_returns(hash);

	if (!first || !second)
		return 0;
	place = place_in(first, key);
	return place ? place : place_in(second, key);
}

static __always_inline u32 empty_in(const struct returns *bucket)
{
	u32 empty = RETURN_WORDS, word;

#pragma unroll
	for (word = 0; word < RETURN_WORDS; word++)
		empty -= is_some(bucket->words[word]);
	return empty;
}

/* Write a word into an empty place of a bucket. False if there is none. */
static __always_inline bool write_return(struct returns *bucket, u64 content)
{
	u32 word;

#pragma unroll
	for (word = 0; word < RETURN_WORDS; word++)
		if (!bucket->words[word] && !__sync_val_compare_and_swap(&bucket->words[word], 0, content))
			return true;
	return false;
}

/* Say where the connection of a port is, in the emptier bucket. False if both are full. */
static __always_inline bool store_return(u64 key, u64 place)
{
	u64 hash = hash_return(key), content = key << RETURN_KEY_SHIFT | (place + 1);
	struct returns *first = find_returns(hash >> 32), *second = find_returns(hash);

	if (!first || !second)
		return false;
	return write_return(empty_in(second) > empty_in(first) ? second : first, content);
}

static __always_inline void clear_in(struct returns *bucket, u64 key)
{
	u32 word;

#pragma unroll
	for (word = 0; word < RETURN_WORDS; word++) {
		u64 held = bucket->words[word];

		if (held >> RETURN_KEY_SHIFT == key)
			__sync_val_compare_and_swap(&bucket->words[word], held, 0);
	}
}

/* Only who has the port may. */
static __always_inline void clear_return(u64 key)
{
	u64 hash = hash_return(key);
	struct returns *first = find_returns(hash >> 32), *second = find_returns(hash);

	if (!first || !second || !key)
		return;
	clear_in(first, key);
	clear_in(second, key);
}
