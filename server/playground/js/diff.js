// Which words of two answers differ: a longest common subsequence of words, and marks around the rest.

import { h } from "./dom.js";

const MOST = 4_000_000;
/** Cells of the table, beyond which nothing is marked: longer answers would hold the page up. */

/** @typedef {{node: Text, word: string, start: number}} Word */

/** Words of all text under an element, in order. @param {Element} element @returns {Word[]} */
function listWords(element) {
  const walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  const words = [];
  while (walker.nextNode()) {
    const node = /** @type {Text} */ (walker.currentNode);
    for (const match of node.data.matchAll(/\S+/g)) words.push({ node, word: match[0], start: match.index });
  }
  return words;
}

/**
 * For each word of either text, whether the other has it at the same place of their longest common subsequence.
 * @param {string[]} left
 * @param {string[]} right
 * @returns {[boolean[], boolean[]] | null} null where they are too long
 */
export function alignWords(left, right) {
  const [n, m] = [left.length, right.length];
  if ((n + 1) * (m + 1) > MOST) return null;
  const width = m + 1;
  const lengths = new Uint16Array((n + 1) * width); // of the common subsequence of left[i:] and right[j:]
  for (let i = n - 1; i >= 0; i -= 1) {
    for (let j = m - 1; j >= 0; j -= 1) {
      lengths[i * width + j] =
        left[i] === right[j]
          ? lengths[(i + 1) * width + j + 1] + 1
          : Math.max(lengths[(i + 1) * width + j], lengths[i * width + j + 1]);
    }
  }
  const shared = [Array(n).fill(false), Array(m).fill(false)];
  for (let i = 0, j = 0; i < n && j < m; ) {
    if (left[i] === right[j]) {
      shared[0][i++] = true;
      shared[1][j++] = true;
    } else if (lengths[(i + 1) * width + j] >= lengths[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return shared;
}

/**
 * Marks the words of each that the other lacks; gives how many of each, or null where the answers are too long.
 * @param {Element} left
 * @param {Element} right
 */
export function markDifferences(left, right) {
  const words = [listWords(left), listWords(right)];
  const shared = alignWords(words[0].map(({ word }) => word), words[1].map(({ word }) => word));
  if (!shared) return null;
  return words.map((side, k) => {
    const marked = side.filter((_, i) => !shared[k][i]);
    for (const { node, word, start } of marked.reverse()) {
      const tail = node.splitText(start); // from the end, so that the starts before it stay right
      tail.splitText(word.length);
      const mark = h("mark", null, word);
      tail.replaceWith(mark);
    }
    return marked.length;
  });
}
