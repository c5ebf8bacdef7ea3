// The page's words, and the elements that carry them.
const WORDS = {
  en: {
    model: "Model", fresh: "New conversation", language: "中文", key: "API key", enter: "Enter", say: "Your message",
    send: "Send", stop: "Stop", you: "You", assistant: "Assistant", up: "Good", down: "Bad", edit: "Correct it",
    again: "Another answer", copy: "Copy", copied: "Copied.", keep: "Send the correction", cancel: "Cancel",
    correction: "What it should have said", thanks: "Thank you, that is noted.", back: "Taken back.",
    which: "Which of the two answers is better?", first: "The first", second: "The second", writing: "The answer is being written…",
    gone: "The server could not be reached.", about: "What you say here may be kept, without personal data, and so may what you make of the answers: it is what the model is improved by.",
    stopped: "Stopped.",
  },
  zh: {
    model: "模型", fresh: "新对话", language: "English", key: "API 密钥", enter: "进入", say: "您的消息",
    send: "发送", stop: "停止", you: "您", assistant: "助手", up: "好", down: "不好", edit: "修改",
    again: "换一个回答", copy: "复制", copied: "已复制。", keep: "提交修改", cancel: "取消",
    correction: "应当这样回答", thanks: "谢谢，已记录。", back: "已撤回。",
    which: "两个回答哪个更好？", first: "第一个", second: "第二个", writing: "正在写回答……",
    gone: "无法连接服务器。", about: "您在这里说的话（去除个人信息后）以及您对回答的评价可能会被保存，用来改进模型。",
    stopped: "已停止。",
  },
};
let language = localStorage.getItem("plaudit-language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export const t = (key) => WORDS[language][key];

// All elements with a word of their own are written in this language from now on.
export function speak(other = language) {
  language = other;
  localStorage.setItem("plaudit-language", other);
  document.documentElement.lang = other === "zh" ? "zh-CN" : "en";
  for (const each of document.querySelectorAll("[data-t]")) each.textContent = t(each.dataset.t);
}

export const other = () => (language === "zh" ? "en" : "zh");

// element("tag", {attribute: value, on: {event: handler}, t: word}, child, ...): children are elements or text.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    else if (name === "t") (made.dataset.t = value, made.textContent = t(value));
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
